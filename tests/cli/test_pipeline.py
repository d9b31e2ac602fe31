"""`--pipeline`: whole saved pipelines with text encoder and tokenizer, loaded without the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from erta_framework import Profile
from erta_framework.metrics import psnr
from erta_policies.ertacache import SkipPolicy
from erta_policies.fitted import FittedProfiler

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn:DeprecationWarning")

Erta = Callable[..., Result]
STEPS, CALLS = 6, 3
PROMPTS = ("a cat", "a dog on a hill")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text_parts: Callable[[], Any]) -> str:
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


def test_a_fit_leads_to_the_exact_solution_in_a_pipeline(folder: str) -> None:
    from erta_integrations.diffusers import load

    options: dict[str, Any] = {"steps": STEPS, "height": 16, "width": 16, "guidance": 5.0}
    profiler = FittedProfiler(schedule=SkipPolicy(steps=(0, 2, 4)), target="exact", steps_within=2)
    profile = load(folder, accelerator="cpu").calibrate(PROMPTS, profiler, **options)
    assert profile.samples == len(PROMPTS)
    assert "solution" in profile.statistics
    # the solution, and four copies of each sample to fit and to judge
    assert profile.provenance["full_runs"] == "11.0"


def test_plans_are_measured_in_a_pipeline(
    erta: Erta, folder: str, prompts: str, profile: str
) -> None:
    size = ["--height", "16", "--width", "16", "--guidance", "5", "accelerator=cpu"]
    where = ["--pipeline", folder, f"prompts_file={prompts}", *size]
    asked = ["--profile", profile, "--policy", "planned_schedule", "--option", "cost=forecast"]
    calls = ["--calls", "3", "--calls", "4"]
    done = erta("plan", *where, *asked, *calls, "--refine", "1", "-o", "measured.st")
    assert done.exit_code == 0, done.output
    assert f"at most {2 * (STEPS + 2 * (3 + 4))} network calls a branch" in done.output
    rows = json.loads(erta("plan", "--profile", "measured.st", *asked[2:], "--json").output)
    found = {row["calls"]: row for row in rows if row["psnr"] is not None}
    assert set(found) == {3, 4}
    assert all(row["refined_psnr"] >= row["psnr"] for row in found.values())
    # the same run as `erta sample` makes: what was measured is what it gives
    options = "{profile: measured.st, budget: {calls: 3}, cost: forecast}"
    policy = f"policies=[{{planned_schedule: {options}}}]"
    for name, settings in (("full", []), ("fast", [policy])):
        erta("sample", *common(folder, prompts), "--output", name, *settings)
    full, fast = (load_file(f"{name}/samples.safetensors")["samples"] for name in ("full", "fast"))
    assert found[3]["psnr"] == pytest.approx(float(psnr(fast, full).mean()))
    refused = erta("plan", *where, *asked, "--front")
    assert "--pipeline replays plans; give --measure or --refine N with it" in refused.output


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


# ------------------------------------------------------------------------------ hub ids
HUB_ID = "owner/tiny-sd"
MAIN = "import sys; from erta_framework.cli import main; sys.exit(main())"


def in_cache(cache: Path, hub_id: str, folder: str, commit: str = "0123456789" * 4) -> Path:
    """Put a saved pipeline where the hub's own client would have put it; its snapshot."""
    entry = cache / f"models--{hub_id.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(commit, encoding="utf-8")
    return Path(shutil.copytree(folder, entry / "snapshots" / commit))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, offline, as HF_HUB_CACHE and HF_HUB_OFFLINE would set it."""
    from huggingface_hub import constants

    path = tmp_path / "hub"
    path.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return path


def test_a_hub_id_is_calibrated_and_sampled_from_the_cache(
    erta: Erta, folder: str, cache: Path, prompts: str, profile: str
) -> None:
    in_cache(cache, HUB_ID, folder)
    by_id = common(HUB_ID, prompts)
    done = erta("calibrate", *by_id, "--output", "hub.safetensors")
    assert done.exit_code == 0, done.output
    found, local = Profile.load("hub.safetensors"), Profile.load(profile)
    assert found.provenance["pipeline"] == f"StableDiffusionPipeline {HUB_ID}"
    assert found.fingerprint == local.fingerprint
    policy = f"policies=[{{ertacache: {{profile: hub.safetensors, calls: {CALLS}}}}}]"
    for name, given in (("hub", by_id), ("local", common(folder, prompts))):
        done = erta("sample", *given, "--output", name, "--no-gifs", policy)
        assert done.exit_code == 0, done.output
        assert [line["network_calls"] for line in ended(name)] == [CALLS, CALLS]
    hub, saved = (load_file(f"{n}/samples.safetensors")["samples"] for n in ("hub", "local"))
    assert torch.equal(hub, saved)


@pytest.mark.parametrize("lost", ["all of it", "model_index.json", "unet"])
def test_a_hub_id_that_is_not_in_the_cache(
    erta: Erta, folder: str, cache: Path, prompts: str, lost: str
) -> None:
    if lost != "all of it":
        snapshot = in_cache(cache, HUB_ID, folder)
        part = snapshot / lost
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    for command in ("sample", "calibrate"):
        done = erta(command, *common(HUB_ID, prompts))
        assert done.exit_code == 2
        assert f"the pipeline {HUB_ID} cannot be loaded; check the id" in done.stderr
        assert f"`hf download {HUB_ID}`, or give the folder" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_folder_that_lost_a_part(erta: Erta, folder: str, tmp_path: Path, prompts: str) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    shutil.rmtree(broken / "unet")
    done = erta("sample", *common(str(broken), prompts))
    assert done.exit_code == 2
    assert "cannot be loaded; save the pipeline again with pipe.save_pretrained" in done.stderr


@pytest.mark.slow
def test_a_hub_id_through_the_environment(folder: str, tmp_path: Path, prompts: str) -> None:
    """The variables that users set, in a process that reads them when it starts."""
    in_cache(tmp_path / "hub", HUB_ID, folder)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    for hub_id, code in ((HUB_ID, 0), ("owner/absent", 2)):
        output = tmp_path / f"{Path(hub_id).name}.safetensors"
        given = [*common(hub_id, prompts), "--output", str(output)]
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "calibrate", *given],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == code, done.stderr
    assert Profile.load(tmp_path / "tiny-sd.safetensors").provenance["pipeline"].endswith(HUB_ID)
    assert "the pipeline owner/absent cannot be loaded" in done.stderr


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
        (["--height", "4"], "--height: only with --pipeline"),
        (["--pipeline", "./nowhere", "-p", "x"], "no folder ./nowhere"),
        (["--pipeline", "FOLDER", "steps=50"], "steps in the configuration would have no effect"),
        (["--pipeline", "FOLDER", "--frames", "9", "-p", "x"], "has no num_frames, so frames"),
        (["--pipeline", "FOLDER", "--height", "16", "-p", "x"], "height=16 without width"),
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


def test_inspect_measures_the_places_of_a_saved_pipeline(erta: Erta, folder: str) -> None:
    where = ("--pipeline", folder, "--height", "16", "--width", "16", "accelerator=cpu")
    done = erta("inspect", *where, "--json")
    assert done.exit_code == 0, done.output
    groups = {group["name"]: group for group in json.loads(done.stdout)}
    assert groups["cut:0"]["kind"] == "cut"
    assert groups["down_blocks.*"]["count"] == 2
    assert 0 < groups["mid_block"]["share"] < groups["cut:0"]["share"] < 1
    table = erta("inspect", *where)
    assert table.exit_code == 0, table.output
    assert "cut:0" in table.output


def test_inspect_shows_a_bundled_model_and_refuses_what_has_no_effect(erta: Erta) -> None:
    done = erta("inspect", "model=shapes-wan")
    assert done.exit_code == 0, done.output
    assert "blocks.*.attn1" in done.output
    refused = erta("inspect", "model=shapes-wan", "--height", "16")
    assert refused.exit_code == 2
    assert "only with --pipeline" in refused.output


def test_one_bar_counts_prompts_and_a_size_that_cannot_be_is_one_message(
    erta: Erta, folder: str, prompts: str
) -> None:
    done = erta("sample", *common(folder, prompts), "--no-gifs", "-o", "out")
    assert done.exit_code == 0, done.output
    assert f"2/2 samples {2 * STEPS}/{2 * STEPS} steps" in done.stderr
    wrong = erta("sample", *common(folder, prompts), "--height", "13", "-o", "wrong")
    assert wrong.exit_code == 2
    assert "StableDiffusionPipeline refuses this request (num_inference_steps=6" in wrong.stderr
    assert "divisible by 8" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_budget_alone_chooses_for_the_pipeline_and_its_steps(
    erta: Erta, folder: str, prompts: str
) -> None:
    asked = [*common(folder, prompts), "--steps", "10", "--no-gifs", "-o", "out", "--speedup", "2"]
    done = erta("sample", *asked)
    assert done.exit_code == 0, done.output
    assert "chosen: " in done.output
    assert "no constants ship for UNet2DConditionModel" in done.output
    assert "5 of 10" in done.output
    done = erta("sample", *asked, "--log-json")
    assert done.exit_code == 2
    assert "name a policy" in done.output


def test_policies_are_compared_in_a_pipeline(erta: Erta, folder: str, prompts: str) -> None:
    done = erta(
        "compare", *common(folder, prompts), "--policy", "{skip_policy: {every: 2}}", "-o", "out"
    )
    assert done.exit_code == 0, done.output
    record = json.loads(Path("out/results.json").read_text(encoding="utf-8"))
    full, every, plain = record["rows"]
    assert [full["steps"], every["steps"], plain["steps"]] == [STEPS, STEPS, 4]
    assert every["work"] == plain["work"] == pytest.approx(4 / STEPS)
    assert full["exact_psnr_mean"] > every["exact_psnr_mean"]
    assert "4 second-order steps for each step" in record["exact"]
    refused = erta(
        "compare", *common(folder, prompts), "--policy", "planned_schedule", "--calls", "3"
    )
    assert refused.exit_code == 2
    assert f"`erta calibrate --pipeline {folder} --policy planned_schedule" in refused.stderr
