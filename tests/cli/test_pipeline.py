"""`--pipeline`: whole saved pipelines with text encoder and tokenizer, loaded without the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from erta_framework import Profile

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn:DeprecationWarning")

Erta = Callable[..., Result]
STEPS, CALLS = 6, 3
PROMPTS = ("a cat", "a dog on a hill")
END = "<|endoftext|>"


def text_parts() -> tuple[Any, Any]:
    """A tokenizer that spells words out, and a text encoder of random weights."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", END]
    vocab = {token: number for number, token in enumerate(tokens)}
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab[END],
        pad_token_id=vocab[END],
    )
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24)
    return tokenizer, CLIPTextModel(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Stable Diffusion pipeline, saved."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, text_encoder = text_parts()
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(4, 8),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4,), layers_per_block=1, latent_channels=4, norm_num_groups=1
        )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    target = tmp_path_factory.mktemp("saved") / "tiny-sd"
    pipe.save_pretrained(target)
    return str(target)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a folder was given, the network is not needed")

    monkeypatch.setattr("socket.socket.connect", refused)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n", encoding="utf-8")
    return str(path)


def common(folder: str, prompts: str) -> list[str]:
    return [
        "--pipeline",
        folder,
        "--prompts",
        prompts,
        *("--steps", str(STEPS), "--height", "16", "--width", "16", "--guidance", "5"),
        "accelerator=cpu",
    ]


@pytest.fixture
def profile(erta: Erta, folder: str, prompts: str) -> str:
    done = erta("calibrate", *common(folder, prompts), "--output", "sd.safetensors")
    assert done.exit_code == 0, done.output
    return "sd.safetensors"


def ended(path: str) -> list[dict[str, Any]]:
    """The lines that a finished request left in the trace."""
    lines = map(json.loads, Path(path, "trace.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "batch_end"]


def test_calibrating_a_pipeline_writes_what_sampling_it_reads(
    erta: Erta, folder: str, prompts: str, profile: str
) -> None:
    made = Profile.load(profile)
    assert made.kind == "residual_profiler"
    assert made.fingerprint["num_steps"] == str(STEPS)
    assert made.fingerprint["guidance"] == "guidance_scale=5.0"
    assert made.fingerprint["model.network"] == "UNet2DConditionModel"
    assert made.provenance["pipeline"] == "StableDiffusionPipeline tiny-sd"
    assert made.provenance["seeds"] == "0..1"
    policy = f"policies=[{{ertacache: {{profile: {profile}, calls: {CALLS}}}}}]"
    for name, settings in (("full", []), ("fast", [policy]), ("again", [policy])):
        done = erta("sample", *common(folder, prompts), "--output", name, *settings)
        assert done.exit_code == 0, done.output
    assert [line["network_calls"] for line in ended("full")] == [STEPS, STEPS]
    assert [line["network_calls"] for line in ended("fast")] == [CALLS, CALLS]
    full, fast, again = (
        load_file(f"{name}/samples.safetensors")["samples"] for name in ("full", "fast", "again")
    )
    assert full.shape == (2, 3, 16, 16)
    assert torch.equal(fast, again)
    assert not torch.equal(fast, full)
    pictures = sorted(path.name for path in Path("fast/pictures").iterdir())
    assert pictures == ["000000-a-cat.png", "000001-a-dog-on-a-hill.png"]


def test_the_seed_and_the_prompt_matter(erta: Erta, folder: str, prompts: str) -> None:
    for name, extra in (("one", ["--seed", "1"]), ("zero", ["--seed", "0"])):
        arguments = [*common(folder, prompts), "--no-gifs", "-o", name, *extra]
        assert erta("sample", *arguments).exit_code == 0
    one, zero = (load_file(f"{n}/samples.safetensors")["samples"] for n in ("one", "zero"))
    assert not torch.equal(one[0], zero[0])
    assert not torch.equal(one[0], zero[1])
    assert not Path("one/pictures").exists()


def test_a_profile_of_another_guidance_is_refused(
    erta: Erta, folder: str, prompts: str, profile: str
) -> None:
    policy = f"policies=[{{ertacache: {{profile: {profile}, calls: {CALLS}}}}}]"
    done = erta("sample", *common(folder, prompts), policy, "--guidance", "3", "-o", "other")
    assert done.exit_code == 1
    assert "guidance: profile 'guidance_scale=5.0' / run 'guidance_scale=3.0'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "4"], "--steps only with --pipeline"),
        (["--pipeline", "./nowhere", "-p", "x"], "no folder ./nowhere"),
        (["--pipeline", "FOLDER", "steps=50"], "steps in the configuration would have no effect"),
        (["--pipeline", "FOLDER", "--frames", "9", "-p", "x"], "has no num_frames, so frames"),
        (["--pipeline", "FOLDER", "-p", "x", "--dtype", "float8"], "dtype 'float8' is unknown"),
        (["--pipeline", "FOLDER"], "no prompts"),
        (["--pipeline", ".", "-p", "x"], "holds no model_index.json"),
    ],
)
def test_what_cannot_work_is_refused(
    erta: Erta, folder: str, arguments: list[str], message: str
) -> None:
    given = [folder if word == "FOLDER" else word for word in arguments]
    for command in ("sample", "calibrate"):
        done = erta(command, *given)
        assert done.exit_code == 2
        assert message in done.stderr
