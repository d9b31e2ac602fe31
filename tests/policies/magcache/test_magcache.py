"""MagCache in requests: on a toy flow, and at the trunk seam of tiny pipelines."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import (
    CFG,
    Call,
    Engine,
    FlowEuler,
    NoGuidance,
    Policy,
    Profile,
    Request,
    SamplingLoop,
    Seam,
    Step,
    hookimpl,
)
from erta_framework.budgets import forecast
from erta_framework.errors import (
    CapabilityError,
    InputError,
    PolicyError,
    ProfileError,
    ProfileMismatchError,
)
from erta_framework.testing import GaussianMixtureFlow, toy_profile
from erta_policies.magcache import MagCache, MagCacheProfiler

SHAPE = (3, 2, 4, 4)
TABLE = (1.0, 1.2, 1.01, 1.01, 1.05, 1.3, 0.99, 0.99, 0.97, 0.6)


def request(steps: int = 10, batch: int = 2, seed: int = 3) -> Request:
    toy = GaussianMixtureFlow(SHAPE)
    generator = torch.Generator().manual_seed(seed)
    return Request(
        latents=torch.randn(batch, *SHAPE, generator=generator),
        cond=toy.encode([f"prompt {k}" for k in range(batch)]),
        uncond=toy.encode([""] * batch),
        schedule=FlowEuler().schedule(steps),
    )


def sample(policies: list[Policy], given: Request, guidance: Any = None, network: Any = None):
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or CFG(scale=2.0))
    return loop.run(network or GaussianMixtureFlow(SHAPE), given)


class Ratios(Policy):
    """Writes down the plain ratio of residual magnitudes, step by step."""

    found: list[tuple[str, int, float]]
    held: dict[str, Tensor]

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call):
        output = yield
        residual = (call.compute() - call.x).movedim(1, -1)
        if call.branch in self.held:
            ratio = residual.norm(dim=-1) / (self.held[call.branch].norm(dim=-1) + 1e-8)
            self.found.append((call.branch, step.index, float(ratio.mean())))
        self.held[call.branch] = residual
        return output


# --------------------------------------------------------------------- what is computed
def test_a_run_computes_the_planned_steps_and_reuses_the_newest_residual() -> None:
    policy = MagCache(ratios=TABLE, retention=0.2, threshold=0.1)
    plan = policy.plan(10)
    assert plan.computed == (0, 1, 4, 5, 8, 9)
    assert plan.threshold == 0.1
    toy, given = GaussianMixtureFlow(SHAPE), request()
    result = sample([policy], given, NoGuidance(), toy)
    assert toy.calls == len(plan.computed) == result.trace.network_calls
    assert tuple(result.trace.computed_steps) == plan.computed
    assert [call.source for call in result.trace.calls() if not call.computed] == [1, 1, 5, 5]
    # x + residual by hand
    x, residual = given.latents, None
    for i in range(10):
        time = torch.full((2,), given.schedule.times[i])
        if i in plan.computed:
            v = GaussianMixtureFlow(SHAPE)(x, time, given.cond)
            residual = v - x
        v = x + residual
        x = x + (given.schedule.sigmas[i + 1] - given.schedule.sigmas[i]) * v
    assert torch.allclose(result.sample, x, atol=1e-5)


def test_the_reasons_say_what_stopped_a_run_of_reuse() -> None:
    policy = MagCache(
        ratios=(1.0,) * 4 + (1.5,) + (1.0,) * 5, retention=0.2, max_skips=3, forbidden=(7,)
    )
    trace = sample([policy], request(), NoGuidance()).trace
    reasons = [call.reason for call in trace.calls()]
    assert reasons[0] == "cold"
    assert reasons[1] == "warm-up"
    assert reasons[2:4] == ["error 0.0000, 1 in a row", "error 0.0000, 2 in a row"]
    assert reasons[4] == "error 0.5000 against 0.06"
    assert reasons[7] == "entry 7 of the table is never reused"
    long = MagCache(ratios=(1.0,) * 10, retention=0.0, max_skips=2)
    assert "2 reused in a row" in [
        call.reason for call in sample([long], request(), NoGuidance()).trace.calls()
    ]
    spike = MagCache(ratios=TABLE, threshold=9.0, max_skips=9, largest_change=0.1)
    assert spike.plan(10).computed == (0, 1, 5, 9)


def test_nothing_skipped_is_bit_identical() -> None:
    given = request()
    full = sample([], given)
    for policy in (
        MagCache(ratios=TABLE, max_skips=0),
        MagCache(ratios=TABLE, threshold=0.0, strict=True),
        MagCache(ratios=TABLE, retention=1.0),
    ):
        made = sample([policy], given)
        assert torch.equal(made.sample, full.sample)
        assert made.trace.reused_calls == 0


def test_each_branch_follows_its_own_table() -> None:
    flat = tuple(x for pair in zip((1.0,) * 10, TABLE, strict=True) for x in pair)
    policy = MagCache(ratios=flat, branches=("cond", "uncond"), threshold=0.1, max_skips=3)
    plans = policy.plans(10)
    assert plans["cond"].computed != plans["uncond"].computed
    trace = sample([policy], request()).trace
    for name, plan in plans.items():
        assert (
            tuple(c.index for c in trace.calls() if c.branch == name and c.computed)
            == plan.computed
        )
    facts = forecast([policy], 10).describe()
    assert facts["calls uncond"] == len(plans["uncond"].computed)
    # the other order of names swaps the schedules
    swapped = MagCache(ratios=flat, branches=("uncond", "cond"), threshold=0.1, max_skips=3)
    assert swapped.plans(10)["uncond"].computed == plans["cond"].computed
    together = MagCache(
        ratios=flat, branches=("cond", "uncond"), threshold=0.1, max_skips=3, shared=True
    )
    trace = sample([together], request()).trace
    assert all(len({c.computed for c in step.calls}) == 1 for step in trace.steps)
    assert tuple(trace.computed_steps) == plans["cond"].computed


def test_branches_that_a_table_does_not_name_are_refused_before_anything_runs() -> None:
    flat = tuple(x for pair in zip(TABLE, TABLE, strict=True) for x in pair)
    toy = GaussianMixtureFlow(SHAPE)
    policy = MagCache(ratios=flat, branches=("positive", "negative"))
    with pytest.raises(InputError, match=r"positive, negative, the run calls cond, uncond.*shared"):
        sample([policy], request(), network=toy)
    assert toy.calls == 0
    with pytest.raises(PolicyError, match="21 ratios cannot be dealt out to the 2 branches"):
        MagCache(ratios=(*flat, 1.0), branches=("cond", "uncond")).plan(10)
    with pytest.raises(PolicyError, match=r"names 3 branches.*for cond, uncond"):
        MagCache(model="qwen-image", branches=("a", "b", "c")).plan(50)
    with pytest.raises(PolicyError, match="serves every branch alike"):
        MagCache(model="flux.1-dev", branches=("cond",)).plan(28)


def test_published_tables_are_refused_where_residuals_are_those_of_latents() -> None:
    toy = GaussianMixtureFlow(SHAPE)
    with pytest.raises(CapabilityError, match=r"'flux\.1-dev'.*seam='trunk'.*any_seam=True"):
        sample([MagCache(model="flux.1-dev")], request(28), network=toy)
    assert toy.calls == 0
    anyway = sample([MagCache(model="flux.1-dev", any_seam=True)], request(28))
    assert len(anyway.trace.computed_steps) == 9


def test_the_boundary_between_networks_is_read_from_the_grid() -> None:
    policy = MagCache(
        model="wan2.2-i2v-a14b", any_seam=True, threshold=1e9, max_skips=99, boundary=0.5
    )
    trace = sample([policy], request(40)).trace
    high = sum(sigma >= 0.5 for sigma in FlowEuler().schedule(40).sigmas[:-1])
    expected = MagCache(
        model="wan2.2-i2v-a14b", threshold=1e9, max_skips=99, high_steps=high
    ).plans(40)
    for name, plan in expected.items():
        done = tuple(c.index for c in trace.calls() if c.branch == name and c.computed)
        assert done == plan.computed


def test_the_predicted_errors_are_products_of_the_table() -> None:
    policy = MagCache(ratios=TABLE, threshold=0.1)
    errors = policy.plan(10).errors
    assert math.isnan(errors[0])
    assert errors[1:5] == pytest.approx([0.2, 0.01, 0.01 * 2 + 0.0001, 1.01 * 1.01 * 1.05 - 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got no ratios"),
        ({"model": "flux.1-dev", "ratios": TABLE}, "got model and ratios"),
        ({"ratios": TABLE, "threshold": -1.0}, "threshold=-1.0"),
        ({"ratios": TABLE, "max_skips": -1}, "max_skips=-1"),
        ({"ratios": TABLE, "retention": 1.5}, "retention=1.5"),
        ({"profile": "p.safetensors", "branches": ("a",)}, "names its branches itself"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        MagCache(**options)


@pytest.mark.parametrize("ratios", [(), (1.0, 0.0), (1.0, -0.5), (1.0, math.nan), (math.inf,)])
def test_ratios_that_are_no_positive_numbers_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(PolicyError, match="positive numbers"):
        Engine([MagCache(ratios=ratios)])


# ------------------------------------------------------------------------- calibration
def test_a_profile_holds_the_plain_mean_ratio() -> None:
    given = request()
    seen = Ratios(found=[], held={})
    result = sample([MagCacheProfiler(), seen], given)
    (profile,) = result.emitted
    table = MagCache(profile=profile)._tables.ratios
    assert set(table) == {"cond", "uncond"}
    for branch, index, ratio in seen.found:
        assert table[branch][index] == pytest.approx(ratio, rel=1e-6)
    assert table["cond"][0] == table["uncond"][0] == 1.0
    assert torch.equal(result.sample, sample([], given).sample)
    square = profile.statistics["square"] / profile.statistics["samples"].clamp(min=1)
    mean = profile.statistics["ratio"] / profile.statistics["samples"].clamp(min=1)
    assert bool((square[:, 1:] >= mean[:, 1:] ** 2).all())
    assert bool((profile.statistics["cosine"][:, 1:] >= -1e-6).all())


def test_profiles_of_batches_merge_to_that_of_one() -> None:
    whole = request(batch=4)
    (one,) = sample([MagCacheProfiler()], whole).emitted
    assert whole.uncond is not None
    halves = []
    for part in (slice(0, 1), slice(1, 4)):
        half = Request(
            latents=whole.latents[part],
            cond=whole.cond[part],
            uncond=whole.uncond[part],
            schedule=whole.schedule,
        )
        halves.extend(sample([MagCacheProfiler()], half).emitted)
    merged = Profile.merge(halves)
    assert merged.samples == one.samples == 4
    for name, value in one.statistics.items():
        assert torch.allclose(merged.statistics[name], value, rtol=1e-6, atol=1e-9), name


def test_a_profile_serves_its_own_run_and_refuses_others() -> None:
    (profile,) = sample([MagCacheProfiler()], request()).emitted
    policy = MagCache(profile=profile, threshold=0.5, max_skips=3)
    trace = sample([policy], request(seed=8)).trace
    assert trace.reused_calls > 0
    assert tuple(c.index for c in trace.calls() if c.branch == "cond" and c.computed) == (
        policy.plans(10)["cond"].computed
    )
    with pytest.raises(ProfileMismatchError, match="num_steps: profile '10' / run '7'"):
        sample([policy], request(7))
    relaxed = MagCache(profile=profile, threshold=0.5, allow=("num_steps", "sigma_grid"))
    assert sample([relaxed], request(7)).trace.num_steps == 7
    with pytest.raises(ProfileMismatchError, match="guidance"):
        sample([policy], request(), CFG(scale=3.0))
    with pytest.raises(ProfileError, match="mag_cache_profiler"):
        Engine([MagCache(profile=Profile("other", {}, {}, 1))])


def test_a_profiler_refuses_what_it_cannot_observe() -> None:
    with pytest.raises(PolicyError, match="observes full runs, but step 2"):
        sample([MagCacheProfiler(), MagCache(ratios=TABLE)], request())
    late = Request(
        latents=request().latents, cond=request().cond, schedule=request().schedule, first=2
    )
    with pytest.raises(InputError, match="starts at step 2"):
        sample([MagCacheProfiler()], late, NoGuidance())
    assert isinstance(object.__new__(MagCache).calibrator(), MagCacheProfiler)
    assert toy_profile(MagCacheProfiler()).samples == 6


# ------------------------------------------------------------------ at the trunk seam
diffusers = pytest.importorskip("diffusers")
from erta_integrations.diffusers import attach  # noqa: E402
from tiny_pipelines import FAMILIES  # noqa: E402


class Residuals(Policy):
    """Notes the seam of every call."""

    found: set[Seam]

    @hookimpl
    def decide(self, call: Call) -> None:
        self.found.add(call.seam)


@pytest.mark.parametrize("name", ["wan-euler", "flux", "qwen-image"])
def test_published_tables_skip_the_planned_blocks_of_a_pipeline(name: str) -> None:
    model = {"wan-euler": "wan2.1-t2v-1.3b", "flux": "flux.1-dev", "qwen-image": "qwen-image"}[name]
    family, pipe = FAMILIES[name], FAMILIES[name].build()
    policy, spy = MagCache(model=model, threshold=0.5), Residuals(found=set())
    with attach(pipe, [spy, policy], seam="trunk") as run:
        family.run(pipe, steps=9)
    plans = policy.plans(9)
    (trace,) = run.traces
    branches = {call.branch for call in trace.calls()}
    for branch in branches:
        done = tuple(c.index for c in trace.calls() if c.branch == branch and c.computed)
        assert done == plans["all" if "all" in plans else branch].computed
    assert trace.reused_calls > 0
    assert spy.found == {Seam.TRUNK}
    still = MagCache(model=model, max_skips=0)
    with attach(pipe, [still], seam="trunk"):
        assert torch.equal(family.run(pipe, steps=9), family.run(FAMILIES[name].build(), steps=9))
    with attach(pipe, [policy]), pytest.raises(CapabilityError, match="seam='trunk'"):
        family.run(pipe, steps=9)


def test_the_steps_of_two_networks_are_read_from_the_grid_of_a_pipeline() -> None:
    """The pipeline switches where its own boundary says; so does the rule, on the same grid."""
    family, pipe = FAMILIES["wan22"], FAMILIES["wan22"].build()
    options: dict[str, Any] = {"model": "wan2.2-t2v-a14b", "threshold": 0.5}
    policy = MagCache(boundary=pipe.config.boundary_ratio, **options)
    with attach(pipe, [policy], seam="trunk") as run:
        family.run(pipe, steps=12)
    (trace,) = run.traces
    high = len({call.index for call in trace.calls() if call.model == "transformer"})
    assert 0 < high < 12
    plans = MagCache(high_steps=high, **options).plans(12)
    for branch, plan in plans.items():
        done = tuple(c.index for c in trace.calls() if c.branch == branch and c.computed)
        assert done == plan.computed
        assert high in done
    assert trace.reused_calls > 0


def test_a_profile_of_one_seam_is_no_profile_of_the_other() -> None:
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with attach(pipe, [MagCacheProfiler()], seam="trunk") as run:
        family.run(pipe)
    profile = run.profile()
    assert profile.fingerprint["model.seam"] == "trunk"
    policy = MagCache(profile=profile, threshold=2.0)
    with attach(pipe, [policy], seam="trunk") as run:
        family.run(pipe, seed=4)
    assert run.traces[0].reused_calls > 0
    with attach(pipe, [policy]), pytest.raises(ProfileMismatchError, match="seam"):
        family.run(pipe)


def test_a_tiny_flux_equals_the_cache_of_diffusers() -> None:
    """diffusers' own `MagCacheConfig` on the same pipeline gives the same latents, bit for bit.

    It has neither the forbidden entry nor the published code's doubles, so this uses ratios that
    float32 holds exactly.
    """
    mag = pytest.importorskip("diffusers.hooks.mag_cache")
    ratios = (1.0, 1.25, 1.0, 1.0625, 1.0, 0.9375, 1.0, 0.875, 1.0, 0.75)
    family = FAMILIES["flux"]
    theirs, ours = family.build(), family.build()
    config = mag.MagCacheConfig(
        threshold=0.2,
        max_skip_steps=2,
        retention_ratio=0.25,
        num_inference_steps=10,
        mag_ratios=list(ratios),
    )
    theirs.transformer.enable_cache(config)
    expected = family.run(theirs, steps=10)
    policy = MagCache(ratios=ratios, threshold=0.2, max_skips=2, retention=0.25, rounding="nearest")
    with attach(ours, [policy], seam="trunk") as run:
        made = family.run(ours, steps=10)
    assert run.traces[0].reused_calls >= 3
    assert torch.equal(made, expected)
    assert not torch.equal(made, family.run(family.build(), steps=10))
