"""Fitted reuse through unmodified pipelines, and from the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from erta_framework import CFG, Profile, Sampler
from erta_framework.cli import app
from erta_framework.errors import PolicyError, ProfileMismatchError
from erta_framework.metrics import psnr
from erta_framework.sampling import repeat_batches
from erta_framework.testing import GaussianMixtureFlow
from erta_integrations.diffusers import LoadedPipeline, attach
from erta_integrations.diffusers.bundled import PipelineSampler
from erta_integrations.shapes_wan import ShapesWan, load
from erta_integrations.shapes_wan.pipeline import WAN, pipeline, request
from erta_policies.ertacache import ResidualReuse, SkipPolicy
from erta_policies.fitted import FittedProfiler, FittedReuse, FittedTable
from erta_policies.fitted._cached_run import RUNS

STEPS = 6
WanSampler = partial(PipelineSampler, through=WAN)
SCHEDULE = SkipPolicy(steps=(0, 2, 5))
PROFILER = FittedProfiler(schedule=SCHEDULE, velocities=2)


@pytest.fixture(scope="module")
def model() -> ShapesWan:
    """The trained model, cut to one block for speed."""
    model = load()
    model.transformer.blocks = model.transformer.blocks[:1]
    return model


@pytest.fixture(scope="module")
def prompts(model: ShapesWan) -> tuple[list[str], list[str]]:
    calibration, held_out = model.demo_prompts()
    return calibration[:4], held_out[:2]


@pytest.fixture(scope="module")
def profile(model: ShapesWan, prompts: tuple[list[str], list[str]]) -> Profile:
    sampler = WanSampler(num_steps=STEPS)
    return sampler.calibrate(model, prompts[0], seed=70, profiler=PROFILER)


def nearness(model: ShapesWan, prompts: list[str], *policies: Any) -> Tensor:
    full, cached = (
        WanSampler(chosen, num_steps=STEPS).sample(model, prompts, seed=11)
        for chosen in ([], policies)
    )
    assert cached.network_calls == 2 * 3
    return psnr(cached.samples, full.samples)


def test_a_pipeline_is_nearer_than_under_plain_reuse(
    model: ShapesWan, prompts: tuple[list[str], list[str]], profile: Profile
) -> None:
    fitted = nearness(model, prompts[1], FittedReuse(profile=profile))
    plain = nearness(model, prompts[1], SCHEDULE, ResidualReuse())
    assert float(fitted.mean()) > float(plain.mean())
    assert profile.samples == 4


def test_attached_by_hand_with_four_copies(
    model: ShapesWan, prompts: tuple[list[str], list[str]], profile: Profile
) -> None:
    pipe = pipeline(model=model)
    names, seeds = prompts[0] * len(RUNS), [70, 71, 72, 73] * len(RUNS)
    with attach(pipe, [PROFILER]) as run:
        pipe(**request(model, names, seeds=seeds, num_steps=STEPS))
    torch.testing.assert_close(
        run.profile().statistics["moments"], profile.statistics["moments"], rtol=1e-6, atol=1e-6
    )
    with attach(pipe, [PROFILER]), pytest.raises(PolicyError, match="got a batch of 2"):
        pipe(**request(model, names[:2], seeds=[1, 2], num_steps=STEPS))
    with attach(pipe, [FittedReuse(profile=profile)]) as run:
        pipe(**request(model, prompts[1], seeds=[1, 2], num_steps=STEPS))
    assert run.traces[0].computed_steps == (0, 2, 5)
    other = WanSampler([FittedReuse(profile=profile)], scheduler="unipc", num_steps=STEPS)
    with pytest.raises(ProfileMismatchError, match="solver"):
        other.sample(model, prompts[1])


def test_one_prompt_after_another_gets_copies_and_is_judged(
    model: ShapesWan, prompts: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(model=model)
    seen: list[Any] = []

    def encoded(prompt: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        seen.append(prompt)
        return model.encode(prompt), model.encode([""] * len(prompt))

    monkeypatch.setattr(pipe, "encode_prompt", encoded)
    size = request(model, prompts[0][:1], seeds=[0])
    options = {"height": size["height"], "width": size["width"], "frames": size["num_frames"]}
    found = LoadedPipeline(pipe, "shapes").calibrate(
        prompts[0][:2], PROFILER, seed=70, steps=STEPS, **options
    )
    # both again: the sum of two batches is judged
    assert seen == [[prompt] * len(RUNS) for prompt in prompts[0][:2]] * 2
    assert (found.samples, FittedTable.of(found).batches, FittedTable.of(found).judged) == (
        2,
        2,
        True,
    )


def test_batches_are_copied_whole() -> None:
    assert repeat_batches(["a"], 3, batch=2, copies=1) == (["a"], [3])
    names, seeds = repeat_batches(["a", "b", "c"], 5, batch=2, copies=3)
    assert names == ["a", "b"] * 3 + ["c"] * 3
    assert seeds == [5, 6] * 3 + [7] * 3
    model, prompts = GaussianMixtureFlow(), [f"p {k}" for k in range(3)]
    sampler = Sampler(num_steps=5, batch_size=2, guidance=CFG(scale=2.0), accelerator="cpu")
    found = sampler.calibrate(model, prompts, profiler=FittedProfiler())
    assert (found.samples, FittedTable.of(found).batches) == (3, 2)


CONFIG = """
model: shapes-wan
steps: 4
policies:
  - fitted: {profile: fitted.st, schedule: {skip_policy: {evenly: 3}}}
"""


def test_the_command_line_fits_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(CONFIG)
    runner = CliRunner()
    words = ["-p", "a red circle moving left", "-p", "a blue square moving up"]
    made = runner.invoke(app, ["calibrate", "run.yaml", *words])
    assert made.exit_code == 0, made.output
    assert FittedTable.of(Profile.load("fitted.st")).computed == (0, 2, 3)
    done = runner.invoke(app, ["sample", "run.yaml", *words[:2], "--no-gifs", "-o", "out"])
    assert done.exit_code == 0, done.output
    assert "6 network calls" in done.output
    plain = runner.invoke(
        app, ["calibrate", "steps=4", "--policy", "fitted", *words, "-o", "plain.st"]
    )
    assert plain.exit_code == 0, plain.output
    assert Profile.load("plain.st").kind == "fitted_profiler"
