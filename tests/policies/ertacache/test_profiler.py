"""What `ResidualProfiler` sums, against full trajectories kept by hand."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erta_framework import CFG, NoGuidance, Profile, Reuse, Traits, hookimpl
from erta_framework.errors import InputError, PolicyError
from erta_framework.plugins import Policy
from erta_framework.sampling.guidance import Branch
from erta_policies.ertacache import ResidualProfiler, SkipPolicy
from erta_policies.ertacache._profiler import PairSums

STEPS = 8


def direct(xs: list[Tensor], vs: list[Tensor]) -> dict[str, np.ndarray]:
    """Every statistic of one branch from whole trajectories in float64, pair by pair."""
    x = [value.double().numpy() for value in xs[:-1]]
    v = [value.double().numpy() for value in vs]
    steps, batch, channels = len(v), len(x[0]), x[0].shape[1]
    out = {name: np.zeros((steps, steps)) for name in ("ratio", "phi_velocity", "phi_difference")}
    out |= {name: np.zeros((steps, steps, channels)) for name in ("v", "vv", "e", "ee", "ve")}
    for i in range(steps):
        for j in range(i):
            reused = x[i] + (v[j] - x[j])
            eps = reused - v[i]
            for b in range(batch):
                size = np.abs(eps[b]).sum()
                out["ratio"][j, i] += size / np.abs(v[i][b] - x[i][b]).sum()
                out["phi_velocity"][j, i] += np.clip(1 - size / np.abs(v[i][b]).sum(), 0, 1)
                if i + 1 < steps:
                    change = np.abs(v[i][b] - v[i + 1][b]).sum()
                    out["phi_difference"][j, i] += np.clip(1 - size / change, 0, 1)
            axes = (0, *range(2, eps.ndim))
            moments = {
                "v": reused, "vv": reused**2, "e": eps, "ee": eps**2, "ve": reused * eps
            }  # fmt: skip
            for name, value in moments.items():
                out[name][j, i] += value.sum(axis=axes)
    return out


def assert_same(profile: Profile, row: int, expected: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        got = profile.statistics[name][row].numpy()
        np.testing.assert_allclose(got, values, rtol=1e-4, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 5), (2, 2, 3, 4), (4,)])
def test_sums_of_a_single_branch(world: SimpleNamespace, shape: tuple[int, ...]) -> None:
    latents = world.noise(3, shape)
    profile = world.calibrate(latents=latents)
    xs, outputs = world.plain(latents)
    expected = direct(xs, outputs["cond"])
    assert_same(profile, 0, expected)
    assert expected["phi_velocity"].max() > 0.5  # the clip is not all that was compared
    assert (expected["phi_difference"] > 0).sum() > 0
    assert profile.kind == "residual_profiler"
    assert profile.samples == 3
    assert profile.statistics["samples"].tolist() == [[3.0] * STEPS]
    per_channel = 3 * latents[0, 0].numel()
    assert profile.statistics["elements"].tolist() == [[float(per_channel)] * STEPS]


def test_sums_of_each_guidance_branch(world: SimpleNamespace) -> None:
    latents = world.noise(2)
    profile = world.calibrate(latents=latents, guidance=world.cfg)
    xs, outputs = world.plain(latents, scale=3.0)
    assert profile.fingerprint["branches"] == "cond,uncond"
    assert_same(profile, 0, direct(xs, outputs["cond"]))
    assert_same(profile, 1, direct(xs, outputs["uncond"]))
    assert not torch.equal(profile.statistics["ratio"][0], profile.statistics["ratio"][1])


def test_batched_guidance_counts_both_halves_as_one_branch(world: SimpleNamespace) -> None:
    latents = world.noise(2)
    profile = world.calibrate(latents=latents, guidance=CFG(scale=3.0, batched=True))
    xs, outputs = world.plain(latents, scale=3.0)
    doubled = [torch.cat([x, x]) for x in xs]
    joined = [torch.cat(pair) for pair in zip(outputs["cond"], outputs["uncond"], strict=True)]
    assert profile.fingerprint["branches"] == "cond+uncond"
    assert_same(profile, 0, direct(doubled, joined))
    assert profile.samples == 2
    assert profile.statistics["samples"].tolist() == [[4.0] * STEPS]


@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
def test_a_branch_that_is_absent_on_some_steps(
    world: SimpleNamespace, start: float, stop: float
) -> None:
    guidance = CFG(scale=3.0, start=start, stop=stop)
    profile = world.calibrate(guidance=guidance)
    inside = [start * STEPS <= i < stop * STEPS for i in range(STEPS)]
    assert profile.statistics["samples"].tolist() == [[3.0] * STEPS, [3.0 * i for i in inside]]
    ratio = profile.statistics["ratio"]
    for j in range(STEPS):
        for i in range(STEPS):
            assert (float(ratio[0, j, i]) > 0) == (j < i)
            assert (float(ratio[1, j, i]) > 0) == (j < i and inside[j] and inside[i])
            after = i + 1 < STEPS and inside[i + 1]
            if not (j < i and inside[j] and inside[i] and after):
                assert float(profile.statistics["phi_difference"][1, j, i]) == 0


class EverySecond(NoGuidance):
    """Evaluates a second branch on even steps alone, for whatever it is worth."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("cond", "extra")

    def branches(
        self, cond: Tensor, uncond: Tensor | None, index: int, num_steps: int
    ) -> tuple[Branch, ...]:
        extra = (Branch("extra", cond),) if index % 2 == 0 else ()
        return (Branch("cond", cond), *extra)


def test_a_change_of_velocity_is_that_of_neighbouring_steps(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=EverySecond())
    assert profile.statistics["samples"][1].tolist() == [3.0, 0.0] * 4
    assert float(profile.statistics["ratio"][1, 0, 2]) > 0
    assert (profile.statistics["phi_difference"][1] == 0).all()


def test_a_branch_that_never_runs_keeps_its_row(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=CFG(scale=3.0, start=1.0, stop=1.0))
    assert profile.fingerprint["branches"] == "cond,uncond"
    assert profile.statistics["samples"].tolist() == [[3.0] * STEPS, [0.0] * STEPS]
    assert profile.statistics["v"].shape == (2, STEPS, STEPS, 2)


@pytest.mark.parametrize("guidance", [None, CFG(scale=3.0), CFG(scale=3.0, batched=True)])
def test_batching_does_not_matter(world: SimpleNamespace, guidance: Any) -> None:
    latents = world.noise(8)
    whole = world.calibrate(latents=latents, guidance=guidance)
    for size in (4, 1, 3):
        parts = [world.calibrate(latents=part, guidance=guidance) for part in latents.split(size)]
        merged = Profile.merge(parts)
        assert merged.samples == whole.samples == 8
        for name, value in whole.statistics.items():
            torch.testing.assert_close(
                merged.statistics[name], value, rtol=1e-6, atol=1e-6, msg=name
            )


def test_order_of_merging_does_not_matter(world: SimpleNamespace) -> None:
    parts = [world.calibrate(latents=part) for part in world.noise(6).split(2)]
    forward, backward = Profile.merge(parts), Profile.merge(parts[::-1])
    for name, value in forward.statistics.items():
        torch.testing.assert_close(backward.statistics[name], value, rtol=1e-12, atol=1e-12)


def test_observing_changes_nothing(world: SimpleNamespace) -> None:
    latents = world.noise()
    kept = latents.clone()
    result = world.run([ResidualProfiler()], latents=latents)
    assert torch.equal(result.sample, world.plain(kept)[0][-1])
    assert torch.equal(latents, kept)
    assert result.trace.history_bytes == 0


def test_nothing_of_the_trajectory_outlives_the_session(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[PairSums]] = []
    build = PairSums.__init__

    def counted(self: PairSums, *arguments: Any) -> None:
        build(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(PairSums, "__init__", counted)
    profiler = ResidualProfiler()
    for seed in range(3):
        emitted = world.run([profiler], latents=world.noise(seed=seed)).emitted
        gc.collect()
        assert len(emitted) == 1
        assert all(sums() is None for sums in made)
    assert len(made) >= 3


def test_one_trajectory_is_held_while_it_runs(world: SimpleNamespace) -> None:
    held: list[int] = []

    class Peek(Policy):
        @hookimpl
        def post_step(self, step: Any) -> None:
            sums = step.session.state_of(profiler, dict)["cond"]
            held.append(len(sums._earlier))

    profiler = ResidualProfiler()
    for _ in range(2):
        held.clear()
        world.run([profiler, Peek()])
        assert held == list(range(1, STEPS + 1))


def test_nothing_is_emitted_after_an_error_or_an_early_stop(world: SimpleNamespace) -> None:
    assert len(world.drive([ResidualProfiler()], 2).emitted) == 1
    assert world.drive([ResidualProfiler()], 2, fail=True).emitted == []
    assert world.drive([ResidualProfiler()], 1, fail=True).emitted == []
    assert world.drive([ResidualProfiler()], 1).emitted == []
    assert world.drive([ResidualProfiler()], 0).emitted == []


def test_reused_steps_are_refused(world: SimpleNamespace) -> None:
    with pytest.raises(PolicyError, match=r"step 1 of branch 'cond' was reused; calibrate without"):
        world.run([SkipPolicy(every=2), ResidualProfiler()])


def test_refused_behind_a_policy_of_another_author(world: SimpleNamespace) -> None:
    class Third(Policy):
        @hookimpl
        def decide(self, step: Any) -> Reuse | None:
            return Reuse("why not") if step.index == 3 else None

    with pytest.raises(PolicyError, match="step 3 of branch 'cond' was reused"):
        world.run([ResidualProfiler(), Third()])


def test_a_trajectory_that_starts_later_is_refused(world: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="starts at step 2; calibrate with first=0"):
        world.run([ResidualProfiler()], first=2)


def test_the_raw_output_is_logged_whatever_other_policies_return(world: SimpleNamespace) -> None:
    class Louder(Policy):
        traits = Traits(corrects_computed=True)

        @hookimpl(wrapper=True)
        def forward(self) -> Any:
            output = yield
            return 2 * output

    latents = world.noise()
    outside = world.run([ResidualProfiler(), Louder()], latents=latents).emitted[0]
    inside = world.run([Louder(), ResidualProfiler()], latents=latents).emitted[0]
    for name, value in inside.statistics.items():
        assert torch.equal(outside.statistics[name], value)


def test_vanishing_residuals_and_errors_stay_finite(world: SimpleNamespace) -> None:
    identity = lambda x, times, cond: x  # noqa: E731
    profile = world.calibrate(network=identity)
    assert all(value.isfinite().all() for value in profile.statistics.values())
    assert float(profile.statistics["ratio"].abs().max()) == 0.0  # nothing is lost by reuse


def test_half_precision_latents_sum_in_float64(world: SimpleNamespace) -> None:
    profile = world.calibrate(latents=world.noise().half())
    assert profile.fingerprint["dtype"] == "float16"
    assert {value.dtype for value in profile.statistics.values()} == {torch.float64}
    assert all(value.isfinite().all() for value in profile.statistics.values())
