"""shapes-wan through the unmodified `WanPipeline`: the own loop's samples, and UniPC."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from erta_framework import Callback, Engine, FlowEuler, Interval, Policy, Profile, Sampler
from erta_framework.budgets import MeasuredFront, forecast, plan_front
from erta_framework.errors import (
    CapabilityError,
    InputError,
    PolicyError,
    ProfileError,
    ProfileMismatchError,
)
from erta_framework.metrics import psnr
from erta_framework.sampling import BatchEnd, RunStart
from erta_framework.session import StepTrace
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.bundled import PipelineSampler
from erta_integrations.shapes_wan import ShapesWan, load
from erta_integrations.shapes_wan import model as model_module
from erta_integrations.shapes_wan.pipeline import WAN, grid, pipeline, request
from erta_policies.ertacache import (
    ERTACache,
    ResidualProfiler,
    ResidualReuse,
    SkipPolicy,
    TimestepAdjuster,
)
from erta_policies.planning import PlannedSchedule

STEPS, SEED = 6, 11
WanSampler = partial(PipelineSampler, through=WAN)
SCHEDULERS = ("flow_euler", "unipc")
SKIP = SkipPolicy(steps=(0, 2, 5))
SHIPPED = Profile.load(model_module.PROFILE)
WARP = TimestepAdjuster(phi=(1.0, 0.7, 1.0, 0.8, 0.9, 1.0))


@pytest.fixture(scope="module")
def model() -> ShapesWan:
    """The trained model, cut to one block for speed."""
    model = load()
    model.transformer.blocks = model.transformer.blocks[:1]
    return model


@pytest.fixture(scope="module")
def prompts(model: ShapesWan) -> list[str]:
    return model.demo_prompts()[1][:2]


@pytest.fixture(scope="module")
def profiles(model: ShapesWan) -> dict[str, Profile]:
    """One calibration through the pipeline a scheduler."""
    few = model.demo_prompts()[0][:2]
    return {
        name: WanSampler(scheduler=name, num_steps=STEPS).calibrate(
            model, few, seed=70, profiler=ResidualProfiler()
        )
        for name in SCHEDULERS
    }


@contextmanager
def counted(model: ShapesWan) -> Iterator[list[int]]:
    """Batch sizes of the real network calls, seen from inside the network."""
    seen: list[int] = []
    handle = model.transformer.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    try:
        yield seen
    finally:
        handle.remove()


def ask(model: ShapesWan, prompts: list[str]) -> dict[str, Any]:
    return request(model, prompts, seeds=[SEED, SEED + 1], num_steps=STEPS)


# ------------------------------------------------------------------------- the pipeline
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_run_that_skips_nothing_is_the_plain_pipeline(
    model: ShapesWan, prompts: list[str], scheduler: str
) -> None:
    pipe = pipeline(scheduler, model=model)
    assert type(pipe) is diffusers.WanPipeline
    assert pipe.transformer is model.transformer
    with counted(model) as plain_calls:
        plain = pipe(**ask(model, prompts)).frames
    with counted(model) as calls, attach(pipe, []) as run:
        attached = pipe(**ask(model, prompts)).frames
    assert plain.shape == (2, 3, 5, 16, 16)
    assert torch.equal(plain, attached)
    assert plain_calls == calls == [2] * (2 * STEPS)
    assert run.traces[0].network_calls == 2 * STEPS
    sampled = WanSampler(scheduler=scheduler, num_steps=STEPS)
    assert torch.equal(sampled.sample(model, prompts, seed=SEED).samples, plain)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_schedule_makes_exactly_its_network_calls(
    model: ShapesWan, prompts: list[str], scheduler: str
) -> None:
    sampler = WanSampler([SKIP, ResidualReuse()], scheduler=scheduler, num_steps=STEPS)
    with counted(model) as calls:
        first = sampler.sample(model, prompts, seed=SEED)
    assert calls == [2] * 6
    assert first.network_calls == 6
    assert first.traces[0].computed_steps == (0, 2, 5)
    assert [call.branch for call in first.traces[0].calls()][:2] == ["cond", "uncond"]
    again = sampler.sample(model, prompts, seed=SEED)
    assert torch.equal(first.samples, again.samples)


# -------------------------------------------------------------------- against the own loop
@dataclass(frozen=True, kw_only=True)
class SingleEuler(FlowEuler):
    """Euler with the step size rounded as diffusers does: both sigmas to float32 first."""

    def step(self, x: Tensor, output: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        size = torch.tensor(interval.end) - torch.tensor(interval.start)
        return x + size * output, None


def own(*policies: Policy, single: bool = False) -> Sampler:
    """The own loop on the grid of the pipeline."""
    solver = SingleEuler() if single else FlowEuler()
    return Sampler(policies, solver=solver, sigmas=grid("flow_euler", STEPS))


def test_the_grids_of_both_loops_differ() -> None:
    """Diffusers shifts its smallest sigma, 0.001, twice; the own loop ends one step above 0."""
    theirs, ours = grid("flow_euler", STEPS), FlowEuler().schedule(STEPS).sigmas
    assert theirs[0] == ours[0] == 1.0
    assert theirs[-1] == ours[-1] == 0.0
    smallest = 3 * 0.001 / 1.002
    assert theirs[-2] == pytest.approx(3 * smallest / (1 + 2 * smallest), rel=1e-6)
    assert ours[-2] == pytest.approx(3 / STEPS / (1 + 2 / STEPS))


@pytest.mark.parametrize("policies", [(), (SKIP, ResidualReuse())], ids=["full", "skip"])
def test_both_loops_give_the_same_bits(
    model: ShapesWan, prompts: list[str], policies: tuple[Policy, ...]
) -> None:
    theirs = WanSampler(policies, num_steps=STEPS).sample(model, prompts, seed=SEED)
    ours = own(*policies).sample(model, prompts, seed=SEED)
    assert torch.equal(theirs.samples, ours.samples)
    assert theirs.seeds == ours.seeds
    for a, b in zip(theirs.traces[0].steps, ours.traces[0].steps, strict=True):
        assert (a.index, a.start, a.end, a.computed) == (b.index, b.start, b.end, b.computed)
        # the network is told float32, to which the own loop rounds last
        assert a.time == torch.tensor(b.time, dtype=torch.float32).item()


def test_both_loops_calibrate_alike_and_reuse_alike(
    model: ShapesWan, prompts: list[str], profiles: dict[str, Profile]
) -> None:
    few = model.demo_prompts()[0][:2]
    ours = own().calibrate(model, few, seed=70, profiler=ResidualProfiler())
    theirs = profiles["flow_euler"]
    assert ours.statistics.keys() == theirs.statistics.keys()
    for name, value in ours.statistics.items():
        assert torch.equal(value, theirs.statistics[name]), name
    assert theirs.provenance["weights"] == model.weights_hash
    fast = WanSampler([ERTACache(profile=theirs, calls=3)], num_steps=STEPS)
    a = fast.sample(model, prompts, seed=SEED)
    b = own(ERTACache(profile=ours, calls=3)).sample(model, prompts, seed=SEED)
    assert a.network_calls == b.network_calls <= 6
    assert torch.equal(a.samples, b.samples)


def test_a_time_warp_differs_only_by_the_rounding_of_its_sigmas(
    model: ShapesWan, prompts: list[str]
) -> None:
    """The scheduler holds moved sigmas in float32; rounding them so makes the own loop equal."""
    policies = (SKIP, ResidualReuse(), WARP)
    theirs = WanSampler(policies, num_steps=STEPS).sample(model, prompts, seed=SEED).samples
    rounded = own(*policies, single=True).sample(model, prompts, seed=SEED).samples
    ours = own(*policies).sample(model, prompts, seed=SEED).samples
    assert torch.equal(theirs, rounded)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    still = own(SKIP, ResidualReuse()).sample(model, prompts, seed=SEED).samples
    assert (theirs - still).abs().max() > 0.01


# ------------------------------------------------------------------------------- UniPC
def test_unipc_runs_ertacache_on_its_own_calibration(
    model: ShapesWan, prompts: list[str], profiles: dict[str, Profile]
) -> None:
    full = WanSampler(scheduler="unipc", num_steps=STEPS).sample(model, prompts, seed=SEED)
    recipe = ERTACache(profile=profiles["unipc"], calls=4)
    fast = WanSampler([recipe], scheduler="unipc", num_steps=STEPS)
    with counted(model) as calls:
        result = fast.sample(model, prompts, seed=SEED)
    assert len(calls) == result.network_calls == 8
    assert 10 < psnr(result.samples, full.samples).min() < 90
    foreign = ERTACache(profile=profiles["flow_euler"], calls=4)
    wrong = WanSampler([foreign], scheduler="unipc", num_steps=STEPS)
    with pytest.raises(ProfileMismatchError, match=r"FlowMatchEuler.*UniPCMultistep"):
        wrong.sample(model, prompts)


def test_unipc_refuses_timestep_adjustment(profiles: dict[str, Profile]) -> None:
    policies = [ERTACache(profile=profiles["unipc"], calls=4, adjuster=True)]
    message = "requires first_order, which UniPCMultistepScheduler does not offer"
    with pytest.raises(CapabilityError, match=message):
        WanSampler(policies, scheduler="unipc", num_steps=STEPS)


@pytest.mark.slow
def test_the_example_of_the_docs_runs() -> None:
    page = Path(__file__).parents[2] / "docs/explanation/shapes-wan.md"
    video, image = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for code, name, shape in (
        (video, "videos", (1, 3, 5, 16, 16)),
        (image, "images", (1, 3, 16, 16)),
    ):
        made: dict[str, Any] = {}
        exec(compile(code, str(page), "exec"), made)  # noqa: S102 - our own page
        assert made[name].shape == shape
        assert made["run"].traces[0].reused_calls > 0


# ----------------------------------------------------------------------------- the sampler
class Seen(Callback):
    def __init__(self) -> None:
        self.start: list[RunStart] = []
        self.steps: list[tuple[int, bool]] = []
        self.batches: list[BatchEnd] = []
        self.end: list[BaseException | None] = []

    def on_run_start(self, run: RunStart) -> None:
        self.start.append(run)

    def on_step(self, step: StepTrace) -> None:
        self.steps.append((step.index, step.computed))

    def on_batch_end(self, batch: BatchEnd) -> None:
        self.batches.append(batch)
        batch.samples.zero_()

    def on_run_end(self, error: BaseException | None) -> None:
        self.end.append(error)


def test_batches_and_observers(model: ShapesWan, prompts: list[str]) -> None:
    seen = Seen()
    sampler = WanSampler([SKIP, ResidualReuse()], [seen], num_steps=STEPS, batch_size=1)
    result = sampler.sample(model, prompts, seed=SEED)
    assert (seen.start[0].samples, seen.start[0].batches, seen.start[0].steps) == (2, 2, STEPS)
    assert seen.steps == [(k, k in (0, 2, 5)) for k in range(STEPS)] * 2
    assert [batch.seeds for batch in seen.batches] == [(SEED,), (SEED + 1,)]
    assert seen.end == [None]
    assert result.samples.abs().sum() > 0  # observers got copies
    assert result.network_calls == 12
    one = WanSampler([SKIP, ResidualReuse()], num_steps=STEPS)
    alone = one.sample(model, prompts[1:], seed=SEED + 1).samples[0]
    assert torch.equal(result.samples[1], alone)


def test_the_newest_trace_is_there_while_a_request_runs(
    model: ShapesWan, prompts: list[str]
) -> None:
    pipe = pipeline(model=model)
    lengths: list[int] = []
    with attach(pipe, [SKIP, ResidualReuse()]) as run:
        assert run.newest is None

        def stepped(*_: Any) -> dict[str, Any]:
            assert run.newest is not None
            lengths.append(len(run.newest.steps))
            return {}

        pipe(**ask(model, prompts), callback_on_step_end=stepped)
        assert run.newest is run.traces[-1]
    assert lengths == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model: WanSampler(scheduler="ddim"),
            "'ddim' is unknown to shapes-wan; give",
        ),
        (lambda model: pipeline("euler"), "'euler' is unknown"),
        (lambda model: WanSampler(num_steps=0), "num_steps is 0"),
        (lambda model: WanSampler(batch_size=0), "batch_size is 0"),
        (lambda model: WanSampler().sample(model, []), "at least one prompt"),
        (lambda model: WanSampler().sample(model, "a red circle"), "give a list"),
        (lambda model: WanSampler().sample(model.transformer, ["a"]), "runs ShapesWan"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model: ShapesWan, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(model)


def test_calibration_needs_a_profiler(model: ShapesWan, prompts: list[str]) -> None:
    with pytest.raises(PolicyError, match="none of the policies needs calibration"):
        WanSampler([SKIP]).calibrate(model, prompts)
    with pytest.raises(PolicyError, match="is no profiler, so it cannot calibrate"):
        WanSampler(num_steps=2).calibrate(model, prompts[:1], profiler=ResidualReuse())


# ---------------------------------------------------------------------- the shipped profile
def test_the_shipped_profile_is_that_of_the_pipeline(
    model: ShapesWan, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model.shipped_profile()
    if diffusers.__version__ == "0.42.1":
        assert path is not None
    shipped = Profile.load(model_module.PROFILE)
    assert (shipped.samples, shipped.fingerprint["num_steps"]) == (24, "50")
    assert shipped.fingerprint["solver"].startswith("FlowMatchEulerDiscreteScheduler(")
    monkeypatch.setattr(model_module, "version", lambda _: "0.1.0")
    assert model.shipped_profile() is None
    monkeypatch.undo()
    monkeypatch.setattr(model, "weights_hash", "others")
    assert model.shipped_profile() is None


@pytest.mark.parametrize("cost", ["reuse", "grouping", "integrated", "corrected", "forecast"])
def test_the_shipped_profile_plans_for_every_cost_and_budget(cost: str) -> None:
    def planned(**budget: float) -> PlannedSchedule:
        return PlannedSchedule(profile=model_module.PROFILE, budget=budget, cost=cost)

    rows = plan_front([planned(calls=50)], 50, MeasuredFront.of(SHIPPED, planned(calls=1).unit))
    assert [row.calls for row in rows if row.psnr is not None] == [8, 12, 17, 25]
    assert len(planned(speedup=4).plan(50).computed) == 12
    (quality,) = (row.psnr for row in rows if row.calls == 17)
    assert quality is not None
    assert 12 < len(planned(psnr=quality - 0.01).plan(50).computed) <= 17
    with pytest.raises(ProfileError, match=r"timed on this device, .* holds none"):
        Engine([planned(seconds=3.5)])


def test_the_walk_of_the_shipped_profile_meets_a_budget_in_db() -> None:
    front = MeasuredFront.of(SHIPPED, "skip_policy")
    assert front is not None
    recipe = ERTACache(profile=model_module.PROFILE, budget={"psnr": front.psnr[2] - 0.01})
    assert 12 < forecast([recipe], 50).calls <= 17


def test_the_docs_say_what_the_shipped_profile_measured() -> None:
    page = Path(__file__).parents[2] / "docs/explanation/schedules.md"
    said = " ".join(page.read_text(encoding="utf-8").split())
    planned = PlannedSchedule(profile=SHIPPED, budget={"calls": 8}, cost="corrected")
    for unit in (planned.unit, "skip_policy"):
        front = MeasuredFront.of(SHIPPED, unit)
        assert front is not None
        *few, most = (f"{quality:.1f}" for quality in front.psnr)
        assert f"{', '.join(few)} and {most}" in said
