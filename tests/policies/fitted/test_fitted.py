"""Calibration and sampling: exact fields, guarantees, counts, guards and refusals."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from erta_bench.overhead import SyncCounter
from erta_framework import CFG, Engine, FlowEuler, NoGuidance, Profile, SamplingLoop
from erta_framework.errors import (
    NonFiniteError,
    PolicyError,
    ProfileError,
    ProfileMismatchError,
)
from erta_framework.sampling.solvers import FlowAdamsBashforth2
from erta_framework.testing import AffineFlow, toy_profile
from erta_framework.testing._drivers import run_plain_loop
from erta_framework.testing._setup import FLOW
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import ResidualReuse, SkipPolicy, TimestepAdjuster
from erta_policies.fitted import (
    FittedProfiler,
    FittedReuse,
    FittedSchedule,
    FittedTable,
    FittedVelocity,
)
from erta_policies.fitted._cached_run import RUNS

STEPS = (0, 3, 5, 8, 11)
SCHEDULE = SkipPolicy(steps=STEPS)
COPIES = len(RUNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled(CFG):
    """Guidance that gives the result the norm of the conditional output, each sample its own."""

    def combine(self, outputs):
        guided = CFG.combine(self, outputs)
        norms = [
            v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1) for v in (outputs["cond"], guided)
        ]
        return guided * norms[0] / norms[1]


@pytest.fixture(scope="module")
def profile(field):
    return field.fit(FittedProfiler(schedule=SCHEDULE))


def error(one, other):
    return float(((one - other) ** 2).mean())


# --------------------------------------------------------------------------- exact fields
def test_a_parabola_in_sigma_is_reproduced(field):
    network, alone = field.Parabola(), NoGuidance()
    profiler = FittedProfiler(schedule=SkipPolicy(steps=(0, 1, 2, 6, 11)), velocities=3, ridge=0.0)
    found = field.run(
        [profiler], network, alone, copies=COPIES, batch=6, dtype=torch.float64
    ).emitted[0]
    cached = field.run(
        [FittedReuse(profile=found)], network, alone, batch=6, seed=50, dtype=torch.float64
    )
    full = field.run([], network, alone, batch=6, seed=50, dtype=torch.float64)
    assert cached.trace.network_calls == 5
    assert error(cached.sample, full.sample) < 1e-12
    line = field.run(
        [SkipPolicy(steps=(0, 1, 2, 6, 11))], network, alone, batch=6, seed=50, dtype=torch.float64
    )
    assert error(line.sample, full.sample) > 1e-4


@pytest.mark.parametrize(
    "guidance",
    [NoGuidance(), CFG(scale=3.0), CFG(scale=3.0, batched=True), CFG(start=0.2, stop=0.7)],
)
def test_a_linear_field_is_reproduced_on_other_samples(field, guidance):
    # latents and mean span the velocity, and so do latents and one velocity
    flow = AffineFlow(field.shape)
    profiler = FittedProfiler(schedule=SCHEDULE, velocities=2, latent=True, ridge=0.0)
    found = field.run(
        [profiler], flow, guidance, copies=COPIES, batch=4, dtype=torch.float64
    ).emitted[0]
    cached = field.run(
        [FittedReuse(profile=found)], flow, guidance, batch=3, seed=70, dtype=torch.float64
    )
    full = field.run([], flow, guidance, batch=3, seed=70, dtype=torch.float64)
    assert error(cached.sample, full.sample) < 1e-12
    assert cached.trace.network_calls < full.trace.network_calls
    assert cached.trace.computed_steps == tuple(sorted(FittedTable.of(found).computed))


# ---------------------------------------------------------------- on the calibration set
@pytest.mark.parametrize("steps", [STEPS, (0, 11), (0, 1, 2, 3, 11), (0, 6, 9, 10)])
@pytest.mark.parametrize("options", [{}, {"target": 0.0}, {"velocities": 1, "computed": False}])
def test_never_worse_than_plain_reuse_on_the_calibration_samples(field, steps, options):
    schedule = SkipPolicy(steps=steps)
    found = field.fit(FittedProfiler(schedule=schedule, **options))
    full, plain, fitted = (
        field.sampler(policies).sample(field.mixture, field.prompts)
        for policies in ([], [schedule, ResidualReuse()], [FittedReuse(profile=found)])
    )
    worst = error(plain.samples, full.samples)
    told = FittedTable.of(found).errors
    assert error(fitted.samples, full.samples) <= worst * (1 + 1e-4)
    assert worst == pytest.approx(told["plain"], rel=1e-3)
    assert error(fitted.samples, full.samples) == pytest.approx(min(told.values()), rel=1e-2)
    assert fitted.network_calls == plain.network_calls


def test_calibration_runs_what_sampling_runs(field, profile):
    table = FittedTable.of(profile)
    assert table.kept == "fitted"
    assert table.errors["fitted"] < min(table.errors["plain"], table.errors["taylor"]) / 4


@pytest.mark.parametrize("best", ["plain", "taylor"])
def test_a_profile_whose_fit_ended_further_away_stands_for_the_rule(field, profile, best):
    errors = profile.statistics["errors"].clone()
    errors[RUNS.index(best) - 1] = 0.0
    worse = dataclasses.replace(profile, statistics={**profile.statistics, "errors": errors})
    cached = field.run([FittedReuse(profile=worse)])
    if best == "plain":
        expected = field.run([SkipPolicy(steps=STEPS), ResidualReuse()])
        assert torch.equal(cached.sample, expected.sample)
    assert cached.trace.computed_steps == STEPS
    full = field.run([])
    assert not torch.equal(cached.sample, full.sample)


def test_nothing_reused_is_bit_identical(field):
    found = field.fit(FittedProfiler(schedule=SkipPolicy(every=1)))
    assert {choice.name for choice in FittedTable.of(found).choices} == {"velocity"}
    request = field.request(dtype=torch.float32)
    engine = Engine([FittedReuse(profile=found)])
    sample = SamplingLoop(engine, FlowEuler(), CFG(scale=2.0)).run(field.mixture, request).sample
    setup = dataclasses.replace(FLOW, guidance=CFG(scale=2.0), num_steps=12)
    assert torch.equal(sample, run_plain_loop(setup, request, field.mixture))


# ---------------------------------------------------------------------- merging and rounds
def test_batches_add_up(field):
    profiler = FittedProfiler(schedule=SCHEDULE)
    joint = field.fit(profiler)
    parts = [
        field.sampler().calibrate(
            field.mixture, field.prompts[k : k + 4], seed=k, profiler=profiler
        )
        for k in (0, 4)
    ]
    merged = Profile.merge(parts)
    batches = field.fit(profiler, batch=4)
    assert merged.samples == joint.samples == batches.samples == 8
    assert FittedTable.of(merged).batches == 2
    torch.testing.assert_close(merged.statistics["moments"], batches.statistics["moments"])
    # the first step after the first call stands where no fit has been before
    first = [each.statistics["moments"][:, 1].sum(dim=0) for each in (joint, merged)]
    torch.testing.assert_close(*first, rtol=1e-5, atol=1e-6)
    assert FittedTable.of(joint).judged
    assert FittedTable.of(batches).judged
    assert not FittedTable.of(merged).judged
    for policy in (FittedReuse, FittedSchedule, FittedVelocity):
        with pytest.raises(ProfileError, match="added up from 2 batches"):
            Engine([policy(profile=merged)])


def test_a_sum_of_profiles_that_were_judged_apart_is_refused(field):
    parts = [
        field.sampler(batch=2).calibrate(
            field.mixture, field.prompts[k : k + 4], seed=k, profiler=FittedProfiler()
        )
        for k in (0, 4)
    ]
    assert [FittedTable.of(part).judged for part in parts] == [True, True]
    with pytest.raises(ProfileError, match="added up from 4 batches"):
        Engine([FittedReuse(profile=Profile.merge(parts))])


def test_a_sum_is_judged_by_its_own_weights(field):
    profiler = FittedProfiler(schedule=SCHEDULE)
    summed = Profile.merge(
        [
            field.sampler().calibrate(
                field.mixture, field.prompts[k : k + 2], seed=k, profiler=profiler
            )
            for k in (0, 2, 4, 6)
        ]
    )
    judged = field.fit(profiler, batch=2)
    one, other = FittedTable.of(summed), FittedTable.of(judged)
    assert (one.batches, one.judged, other.batches, other.judged) == (4, False, 4, True)
    assert one.computed == other.computed == STEPS
    for before, after in zip(one.choices, other.choices, strict=True):
        assert before.name == after.name
        torch.testing.assert_close(before.weights, after.weights, rtol=1e-6, atol=1e-6)
    full, fitted = (
        field.sampler(policies).sample(field.mixture, field.prompts).samples
        for policies in ([], [FittedReuse(profile=judged)])
    )
    assert error(fitted, full) == pytest.approx(min(other.errors.values()), rel=1e-2)
    # weights of one batch are judged by the pass that made them
    joint = field.fit(FittedProfiler(schedule=SCHEDULE))
    again = FittedTable.of(field.fit(FittedProfiler(start=joint)))
    assert again.errors == pytest.approx(FittedTable.of(joint).errors, rel=1e-6)


def test_profiles_of_unlike_fits_are_refused(field, profile):
    other = field.fit(FittedProfiler(schedule=SkipPolicy(steps=(0, 2, 11))))
    with pytest.raises(ProfileError, match="different schedules"):
        Engine([FittedReuse(profile=Profile.merge([profile, other]))])
    other = field.fit(FittedProfiler(schedule=SCHEDULE, ridge=1e-2))
    with pytest.raises(ProfileError, match="different settings"):
        Engine([FittedReuse(profile=Profile.merge([profile, other]))])
    with pytest.raises(PolicyError, match="same settings"):
        Engine([FittedProfiler(start=other)])


def test_a_file_holds_it_all(tmp_path, field, profile):
    path = profile.save(tmp_path / "fitted.safetensors")
    one, other = (field.run([FittedReuse(profile=each)]) for each in (profile, path))
    assert torch.equal(one.sample, other.sample)
    facts = FittedSchedule(profile=path).plan(12).describe()
    assert facts["calls"] == 5.0
    assert facts["fitted_error"] < facts["taylor_error"]


# ------------------------------------------------------------------------- while sampling
def test_counts_and_types(field, profile):
    for dtype in (torch.float32, torch.bfloat16):
        allow = ("dtype",)
        result = field.run([FittedReuse(profile=profile, allow=allow)], dtype=dtype)
        assert result.trace.computed_steps == STEPS
        assert result.trace.network_calls == 2 * len(STEPS)
        assert result.sample.dtype is dtype
        assert bool(result.sample.isfinite().all())


def test_a_weight_a_channel(field):
    found = field.fit(FittedProfiler(schedule=SCHEDULE, granularity="channel"))
    assert found.statistics["moments"].shape[2] == 3
    table = FittedTable.of(found)
    full, fitted = (
        field.sampler(policies).sample(field.mixture, field.prompts).samples
        for policies in ([], [FittedReuse(profile=found)])
    )
    assert error(fitted, full) == pytest.approx(table.errors["fitted"], rel=1e-2)


def test_no_synchronisation(field, profile):
    engine = Engine([FittedReuse(profile=profile)])
    assert engine.traits.static
    request = field.request(dtype=torch.float32)
    loop = SamplingLoop(engine, FlowEuler(), CFG(scale=2.0))
    with SyncCounter() as counted:
        loop.run(field.mixture, request)
    with SyncCounter() as bare:
        SamplingLoop(Engine([]), FlowEuler(), CFG(scale=2.0)).run(field.mixture, request)
    assert dict(counted.counts) == dict(bare.counts)


def test_the_guard_computes_and_says_so(field, profile):
    engine = Engine([FittedReuse(profile=profile, guard=True)])
    assert not engine.traits.static
    calm = field.run([FittedReuse(profile=profile, guard=True)])
    assert torch.equal(calm.sample, field.run([FittedReuse(profile=profile)]).sample)
    parts = [
        FittedSchedule(profile=profile),
        FittedVelocity(profile=profile, guard=True, limit=0.5),
    ]
    strict = field.run(parts)
    said = [call.reason for call in strict.trace.calls() if "out of range" in call.reason]
    assert said
    assert strict.trace.network_calls > 2 * len(STEPS)
    assert all(c.computed for c in strict.trace.calls() if "out of range" in c.reason)


class Broken:
    """Answers NaN at one step."""

    def __init__(self, flow, at):
        self.flow, self.at = flow, at

    def __call__(self, x, times, cond):
        answer = self.flow(x, times, cond)
        return answer * float("nan") if float(times[0]) < self.at else answer


def test_an_answer_that_is_not_finite_is_found(field, profile):
    network = Broken(field.mixture, at=800.0)
    free = field.run([FittedReuse(profile=profile)], network)
    with pytest.raises(NonFiniteError):
        free.trace.raise_if_nonfinite()
    guarded = field.run([FittedReuse(profile=profile, guard=True)], network)
    assert any("out of range" in call.reason for call in guarded.trace.calls())


def test_off_the_schedule_it_is_adams_bashforth_and_says_so(field, profile):
    parts = [SkipPolicy(steps=(0, 2, 11)), FittedVelocity(profile=profile)]
    trace = field.run(parts).trace
    reasons = {(c.index, c.computed): c.reason for c in trace.calls()}
    assert reasons[1, False] == "schedule"
    assert "off the fitted schedule" in reasons[3, False]
    assert trace.computed_steps == (0, 2, 11)


def test_rows_of_their_own_and_moved_steps_leave_the_schedule(field, profile):
    easy = field.run([EasyCache(threshold=0.5, warmup=2), FittedVelocity(profile=profile)])
    assert any("off the fitted schedule" in call.reason for call in easy.trace.calls())
    moved = field.run([TimestepAdjuster(phi=(0.8,) * 12), FittedReuse(profile=profile)])
    assert any("off the fitted schedule" in call.reason for call in moved.trace.calls())
    assert moved.trace.computed_steps == STEPS


# ------------------------------------------------------------------------------- refusals
def test_other_runs_are_refused(field, profile):
    policies = [FittedReuse(profile=profile)]
    with pytest.raises(ProfileMismatchError, match="num_steps"):
        field.run(policies, steps=10)
    with pytest.raises(ProfileMismatchError, match="guidance"):
        field.run(policies, guidance=CFG(scale=5.0))
    allowed = field.run([FittedReuse(profile=profile, allow=("guidance",))], None, CFG(scale=5.0))
    assert allowed.trace.computed_steps == STEPS
    with pytest.raises(ProfileMismatchError, match="solver"):
        SamplingLoop(Engine(policies), FlowAdamsBashforth2(), CFG(scale=2.0)).run(
            field.mixture, field.request()
        )
    with pytest.raises(PolicyError, match="needs profile"):
        Engine([FittedReuse()])
    with pytest.raises(ProfileError, match="12 steps"):
        FittedSchedule(profile=profile).plan(9)


def test_a_batch_without_copies_is_refused(field):
    profiler = FittedProfiler(schedule=SCHEDULE)
    with pytest.raises(PolicyError, match="got a batch of 3"):
        field.run([profiler], batch=3)
    with pytest.raises(PolicyError, match="the latents of the copies differ"):
        field.run([profiler], batch=4)


def test_guidance_that_is_no_weighted_sum_is_refused(field):
    with pytest.raises(PolicyError, match="no fixed weighted sum"):
        field.run([FittedProfiler(schedule=SCHEDULE)], None, Rescaled(scale=5.0), copies=COPIES)


def test_a_last_branch_without_weight_is_refused(field):
    with pytest.raises(PolicyError, match="no weight"):
        field.run([FittedProfiler(schedule=SCHEDULE)], None, CFG(scale=1.0), copies=COPIES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"velocities": 0}, "must be 1 to 6"),
        ({"velocities": 7}, "must be 1 to 6"),
        ({"target": 1.5}, r"must be in \[0, 1\]"),
        ({"ridge": -1.0}, "must not be"),
        ({"bound": 0.0}, "must be positive"),
        ({"schedule": EasyCache(threshold=0.1)}, "decides while sampling"),
        ({"schedule": SCHEDULE, "start": "x.safetensors"}, "drop schedule"),
    ],
)
def test_settings_are_checked(options, said):
    with pytest.raises(PolicyError, match=said):
        FittedProfiler(**options)


def test_the_limit_is_checked():
    with pytest.raises(PolicyError, match="must be positive"):
        FittedVelocity(limit=0.0)


def test_the_kit_calibrates_with_copies():
    found = toy_profile(FittedProfiler())
    assert found.samples == 6
    assert FittedTable.of(found).batches == 3
