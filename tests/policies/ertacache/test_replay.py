"""`ReplayProfiler` against a slow walk on the cached trajectory, and the schedule it carries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import CFG, FlowEuler, Profile
from erta_framework.errors import InputError, PolicyError, ProfileError, ProfileMismatchError
from erta_policies.ertacache import ReplayProfiler, SkipPolicy

STEPS = 8


def slow_replay(
    world: SimpleNamespace, latents: Tensor, threshold: float, warmup: int = 1, scale: float = 0.0
) -> tuple[list[int], list[float], Tensor]:
    """Computed steps, the error at every step, and where the cached trajectory ends."""
    network, schedule = world.Swirl(), FlowEuler().schedule(STEPS)
    cond, uncond = world.conditions(latents)
    conditions = [cond, uncond] if scale else [cond]
    x, cached, computed, errors = latents, [], [], []
    for i in range(STEPS):
        times = torch.full((len(x),), schedule.times[i])
        fresh = [network(x, times, c) for c in conditions]
        error = 0.0
        if cached:
            true = fresh[0] - x
            rows = [
                float((cached[0][b] - true[b]).abs().sum() / true[b].abs().sum())
                for b in range(len(x))
            ]
            error = sum(rows) / len(rows)
        errors.append(error)
        if cached and i >= warmup and i < STEPS - 1 and error < threshold:
            outputs = [x + r for r in cached]
        else:
            cached = [v - x for v in fresh]
            outputs = fresh
            computed.append(i)
        v = outputs[1] + scale * (outputs[0] - outputs[1]) if scale else outputs[0]
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    return computed, errors, x


def replay(world: SimpleNamespace, threshold: float, warmup: int = 1, **options: Any) -> Any:
    return world.run([ReplayProfiler(threshold=threshold, warmup=warmup)], **options)


@pytest.mark.parametrize("warmup", [1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.25, 0.4, 0.8, 100.0])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_walk_is_the_slow_walk(
    world: SimpleNamespace, threshold: float, warmup: int, scale: float
) -> None:
    latents = world.noise()
    guidance = CFG(scale=scale) if scale else None
    result = replay(world, threshold, warmup, latents=latents, guidance=guidance)
    computed, errors, x = slow_replay(world, latents, threshold, warmup, scale)
    (profile,) = result.emitted
    assert profile.kind == "replay_profiler"
    assert profile.samples == 3
    assert profile.provenance["threshold"] == str(threshold)
    share = profile.statistics["computed"] / profile.samples
    assert [i for i, part in enumerate(share.tolist()) if part == 1.0] == computed
    assert (profile.statistics["error"] / 3).tolist() == pytest.approx(errors, abs=1e-6)
    assert torch.equal(result.sample, x)
    assert result.trace.network_calls == STEPS * (2 if scale else 1)  # it always looks


def test_thresholds_make_different_walks(world: SimpleNamespace) -> None:
    latents = world.noise()
    walks = {tuple(slow_replay(world, latents, t)[0]) for t in (0.0, 0.25, 0.4, 100.0)}
    assert len(walks) >= 3
    assert tuple(range(STEPS)) in walks
    assert (0, STEPS - 1) in walks


@pytest.mark.parametrize("guidance", [None, CFG(scale=3.0)])
def test_the_schedule_reproduces_the_replayed_trajectory(
    world: SimpleNamespace, guidance: Any
) -> None:
    result = replay(world, 0.4, guidance=guidance)
    (profile,) = result.emitted
    policy = SkipPolicy(profile=profile)
    plan = policy.plan(STEPS)
    assert plan.threshold == 0.4
    assert 2 < plan.calls < STEPS
    used = world.run([policy], guidance=guidance)
    assert used.trace.computed_steps == plan.computed
    assert torch.equal(used.sample, result.sample)


def test_a_saved_schedule_is_the_same(world: SimpleNamespace, tmp_path: Any) -> None:
    (profile,) = replay(world, 0.4).emitted
    path = profile.save(tmp_path / "replay.safetensors")
    assert SkipPolicy(profile=path).plan(STEPS) == SkipPolicy(profile=profile).plan(STEPS)


@pytest.mark.parametrize(
    ("start", "stop", "batched"),
    [(0.5, 1.0, False), (0.0, 0.5, False), (0.5, 1.0, True), (0.25, 0.75, True)],
)
def test_guidance_intervals_compute_where_a_branch_begins(
    world: SimpleNamespace, start: float, stop: float, batched: bool
) -> None:
    guidance = CFG(scale=3.0, start=start, stop=stop, batched=batched)
    result = replay(world, 100.0, guidance=guidance)
    plan = SkipPolicy(profile=result.emitted[0]).plan(STEPS)
    begins = {0, STEPS - 1}
    if start > 0:
        begins.add(int(start * STEPS))  # the unconditional branch begins
    assert begins <= set(plan.computed)
    used = world.run([SkipPolicy(profile=result.emitted[0])], guidance=guidance)
    # batched: outside the interval a branch of another name runs, whose residual may be an old one
    assert used.trace.computed_steps == plan.computed
    assert torch.equal(used.sample, result.sample)


def test_batches_vote_by_samples(world: SimpleNamespace) -> None:
    parts = [replay(world, 0.3, latents=part).emitted[0] for part in world.noise(7).split(3)]
    merged = Profile.merge(parts)
    votes = sum(p.statistics["computed"] for p in parts) / 7
    plan = SkipPolicy(profile=merged).plan(STEPS)
    assert plan.computed == tuple(i for i, v in enumerate(votes.tolist()) if v >= 0.5)


def test_merging_walks_of_different_thresholds_is_refused(world: SimpleNamespace) -> None:
    merged = Profile.merge([replay(world, t).emitted[0] for t in (0.2, 0.5)])
    with pytest.raises(ProfileError, match=r"different thresholds \(0.2; 0.5\)"):
        SkipPolicy(profile=merged).plan(STEPS)


@pytest.mark.parametrize("options", [{"threshold": 0.1}, {"calls": 4}])
def test_a_replay_profile_with_another_schedule_is_refused(
    world: SimpleNamespace, options: dict[str, Any]
) -> None:
    (profile,) = replay(world, 0.4).emitted
    with pytest.raises(PolicyError, match=r"schedule of its own threshold \(0.4\); drop"):
        world.run([SkipPolicy(profile=profile, **options)])


def test_a_replay_profile_of_another_run_is_refused(world: SimpleNamespace) -> None:
    (profile,) = replay(world, 0.4).emitted
    with pytest.raises(ProfileMismatchError, match="num_steps: profile '8' / run '9'"):
        world.run([SkipPolicy(profile=profile)], num_steps=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, r"threshold=-0.1\): it must be >= 0"),
        ({"threshold": float("nan")}, r"threshold=nan\): it must be >= 0"),
        ({"threshold": 0.1, "warmup": 0}, r"warmup=0\): step 0 is always computed"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        ReplayProfiler(**options)


def test_parts_of_runs_are_refused(world: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="ReplayProfiler observes whole trajectories"):
        replay(world, 0.4, first=1)
    with pytest.raises(PolicyError, match="ReplayProfiler observes full runs, but step 1"):
        world.run([ReplayProfiler(threshold=0.4), SkipPolicy(every=2)])


def test_an_error_or_an_early_stop_emits_nothing(world: SimpleNamespace) -> None:
    assert len(world.drive([ReplayProfiler(threshold=0.4)], 2).emitted) == 1
    assert world.drive([ReplayProfiler(threshold=0.4)], 2, fail=True).emitted == []
    assert world.drive([ReplayProfiler(threshold=0.4)], 1).emitted == []
