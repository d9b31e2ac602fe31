"""`--seam`, and `erta calibrate` for every installed policy that reads a profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from erta_framework import Profile, Seam
from erta_framework.cli._calibrate import find_calibrator, list_calibrated, make_blank_policy

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn:DeprecationWarning",
    "ignore:__array_wrap__ must accept:DeprecationWarning",
)

Erta = Callable[..., Result]
CALIBRATED = list_calibrated()
PROFILERS = {name: find_calibrator(make_blank_policy(name)) for name in CALIBRATED}
LACKS = {
    "CodebookProfiler": "compares two branches of each step",
    "FittedProfiler": "needs each sample 4 times in a batch",
    "PromptProfiler": "for batched guidance give half",
    "RegressionProfiler": "requires signal:timestep_projection",
}
"""What some profilers need and the tiny pipeline, with its batched guidance, has not."""
UNET_ONLY = {"cachequant", "channel_correction", "grouped_steps"}
"""By default they cut a UNet, which this pipeline has not."""
TRUNK = {
    repr(found): name
    for name, found in PROFILERS.items()
    if found is not None and Seam.TRUNK in found.traits.seams
}
"""One policy for each profiler that observes the trunk seam."""
INSIDE = [n for n, found in PROFILERS.items() if found and found.selects]
"""Policies whose profilers look at places inside the network, at whichever seam it runs."""
LATENT_ONLY = [
    n
    for n, found in PROFILERS.items()
    if found and Seam.TRUNK not in found.traits.seams and n not in INSIDE
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text_parts: Callable[[], Any]) -> str:
    """A tiny Stable Diffusion 3, saved: its transformer has a block stack."""
    import diffusers
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, clip = text_parts()
        config = CLIPTextConfig(**{**clip.config.to_dict(), "projection_dim": 8})
        encoders = [CLIPTextModelWithProjection(config) for _ in range(2)]
        words = config.vocab_size
        t5 = T5EncoderModel(
            T5Config(vocab_size=words, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        )
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            out_channels=4,
        )
        for parameter in transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(4,),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=1,
            shift_factor=0.1,
        )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=text_parts()[0],
        text_encoder_3=t5,
        tokenizer_3=text_parts()[0],
    )
    target = tmp_path_factory.mktemp("saved") / "tiny-sd3"
    pipe.save_pretrained(target)
    return str(target)


def through(folder: str, *more: str) -> list[str]:
    small = ("--steps", "5", "--height", "16", "--width", "16", "accelerator=cpu")
    return ["--pipeline", folder, *small, *more, "--prompt", "a cat"]


def ended(path: str) -> dict[str, Any]:
    """The line that a finished request left in the trace."""
    lines = Path(path, "trace.jsonl").read_text(encoding="utf-8").splitlines()
    return next(line for line in map(json.loads, lines) if line["event"] == "batch_end")


# --------------------------------------------------------------- every calibrated policy
def test_the_methods_with_a_profile_are_found() -> None:
    methods = {"ertacache", "teacache", "magcache", "meancache", "sencache"}
    assert methods <= set(CALIBRATED)
    assert {repr(PROFILERS[n]) for n in ("ertacache", "teacache", "magcache")} <= set(TRUNK)
    assert {"sencache", "meancache"} <= set(LATENT_ONLY)
    assert "easycache" not in CALIBRATED


@pytest.mark.parametrize("name", [name for name in CALIBRATED if name not in INSIDE])
def test_every_policy_that_reads_a_profile_is_calibrated_by_name(erta: Erta, name: str) -> None:
    done = erta("calibrate", "model=mixture", "steps=5", "--policy", name, "-o", "one.st")
    assert done.exit_code == 0, done.output
    merged = erta("profile", "merge", "one.st", "one.st", "-o", "both.st")
    assert merged.exit_code == 0, merged.output
    found = Profile.load("both.st")
    assert found.samples == 2 * Profile.load("one.st").samples > 0
    assert found.fingerprint["model.class"] == "ToyFlow"


@pytest.mark.parametrize("name", INSIDE)
def test_places_inside_a_pipeline_are_calibrated_by_name(
    erta: Erta, folder: str, name: str
) -> None:
    done = erta("calibrate", *through(folder), "--policy", name, "-o", "p.st")
    if name in UNET_ONLY:
        assert done.exit_code == 1
        assert "down_blocks" in done.output
        return
    assert done.exit_code == 0, done.output
    made = Profile.load("p.st")
    assert made.samples > 0


@pytest.mark.parametrize("name", TRUNK.values())
def test_and_at_the_trunk_seam_of_a_pipeline(erta: Erta, folder: str, name: str) -> None:
    found = PROFILERS[name]
    assert found is not None
    own = bool(found.calibration_prompts)
    arguments = through(folder)[:-2] if own else through(folder)
    done = erta("calibrate", *arguments, "--policy", name, "--seam", "trunk", "-o", "p.st")
    profiler = type(found).__name__
    if profiler in LACKS:
        assert done.exit_code == 1
        assert profiler in done.output
        assert LACKS[profiler] in " ".join(done.output.split())
        return
    assert done.exit_code == 0, done.output
    made = Profile.load("p.st")
    assert made.fingerprint["model.seam"] == "trunk"
    assert made.samples > 0


@pytest.mark.parametrize("name", LATENT_ONLY)
def test_a_profiler_of_the_other_seam_is_refused_before_anything_is_loaded(
    erta: Erta, name: str
) -> None:
    done = erta("calibrate", *through("./nowhere"), "--policy", name, "--seam", "trunk")
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "observes the latent seam, not the trunk seam; calibrate with --seam latent" in said


@pytest.mark.parametrize("name", ["easycache", "every_branch_agrees", "taylorseer"])
def test_a_policy_without_a_profile_is_refused_and_those_that_have_one_are_named(
    erta: Erta, name: str
) -> None:
    done = erta("calibrate", *through("./nowhere"), "--policy", name)
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "nothing to calibrate" in said
    assert f"such as {', '.join(CALIBRATED)}" in said


# ------------------------------------------------------------------------ the trunk seam
def test_a_pipeline_is_calibrated_and_sampled_at_the_trunk_seam(erta: Erta, folder: str) -> None:
    made = erta("calibrate", *through(folder, "seam=trunk"), "--policy", "magcache", "-o", "m.st")
    assert made.exit_code == 0, made.output
    policy = "policies=[{magcache: {profile: m.st, threshold: 100, max_skips: 2, retention: 0.2}}]"
    for name, said in (("option", ("--seam", "trunk")), ("config", ("seam=trunk",))):
        done = erta("sample", *through(folder, policy), *said, "-o", name, "--no-gifs")
        assert done.exit_code == 0, done.output
        assert ended(name)["network_calls"] == 2, "computed at steps 0 and 3"
    other = erta("sample", *through(folder, policy), "-o", "latent", "--no-gifs")
    assert other.exit_code == 1
    assert "model.seam: profile 'trunk' / run 'nothing'" in " ".join(other.output.split())


def test_a_profiler_in_the_config_keeps_its_settings(erta: Erta, folder: str) -> None:
    profiler = "policies=[{teacache_profiler: {signal: modulated_input}}]"
    done = erta("calibrate", *through(folder, profiler), "--seam", "trunk", "-o", "t.st")
    assert done.exit_code == 0, done.output
    assert Profile.load("t.st").fingerprint["signal"] == "modulated_input"


def test_the_bundled_model_runs_in_its_pipeline_at_the_trunk_seam(erta: Erta) -> None:
    prompt = ("steps=4", "accelerator=cpu", "-p", "a red circle moving left")
    done = erta("calibrate", *prompt, "--policy", "magcache", "--seam", "trunk", "-o", "w.st")
    assert done.exit_code == 0, done.output
    found = Profile.load("w.st")
    assert found.fingerprint["model.seam"] == "trunk"
    assert "FlowMatchEulerDiscreteScheduler" in found.fingerprint["solver"]
    policy = "policies=[{magcache: {profile: w.st, threshold: 100, max_skips: 3}}]"
    done = erta("sample", *prompt, policy, "seam=trunk", "-o", "out", "--no-gifs")
    assert done.exit_code == 0, done.output
    assert ended("out")["network_calls"] == 2, "both branches at the first step"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=toy-video", "--seam", "trunk"), "the model 'toy-video' brings no pipeline"),
        (("--seam", "tokens"), "seam is 'tokens', it must be 'latent' or 'trunk'"),
        (("seam=tokens",), "seam is 'tokens'"),
        (("solver=flow_ab2", "seam=trunk"), "solver in the configuration would have no effect"),
        (("devices=2", "seam=trunk"), "run a bundled model in the own loop"),
    ],
)
def test_what_does_not_fit_the_seam_is_refused(
    erta: Erta, arguments: tuple[str, ...], message: str
) -> None:
    profiler = ("--policy", "magcache", "-p", "a red circle moving left", "steps=3")
    done = erta("calibrate", *profiler, *arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
