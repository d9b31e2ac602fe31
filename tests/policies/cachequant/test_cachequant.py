"""CacheQuant: what its profile sums, what is corrected, and runs that it must refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erta_framework import CFG, NoGuidance, Policy, Profile
from erta_framework.config import build_policies, options_of
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_framework.modules import Select
from erta_framework.testing import BlockFlow
from erta_policies.at import At
from erta_policies.cachequant import CacheQuant, ChannelCorrection, FeatureProfiler, GroupedSteps
from erta_policies.ertacache import SkipPolicy
from erta_policies.shared import find_channels, read_rows
from module_plans import STEPS, request, sample, visits

SPAN = Select(kind=("block",), span=True)
MLP = Select(kind=("mlp",))


def calibrate(sites: Select = SPAN, interval: int = 3, **given: Any) -> Profile:
    (made,) = sample(FeatureProfiler(sites=sites, interval=interval), **given).emitted
    assert isinstance(made, Profile)
    return made


def record(path: str, guidance: Any = None) -> list[list[Tensor]]:
    """Outputs of a module in an untouched run, `[branch][step]`."""
    network, found = BlockFlow(), []
    network.get_submodule(path).register_forward_hook(lambda *args: found.append(args[2].clone()))
    sample(network=network, guidance=guidance)
    branches = 1 if isinstance(guidance, NoGuidance) else 2
    return [found[k::branches] for k in range(branches)]


def by_channel(feature: Tensor) -> Tensor:
    return feature.movedim(find_channels(feature), 0).flatten(1).double()


# ------------------------------------------------------------------------- the profile
def test_distances_and_lines_are_those_of_an_untouched_run() -> None:
    profile = calibrate(MLP)
    row = read_rows(profile).index("blocks.1.mlp")
    runs = record("blocks.1.mlp")
    correction = ChannelCorrection(profile=profile, each_branch=True)
    for branch, features in enumerate(runs):
        for step, y in enumerate(features):
            for lag in range(1, min(step, 5) + 1):
                x = features[step - lag]
                place = (branch, row, step, 0, lag - 1)
                distance = float(profile.statistics["distance"][place])
                assert distance == pytest.approx(float((y - x).abs().sum()), rel=1e-6)
                for c, (u, v) in enumerate(zip(by_channel(x), by_channel(y), strict=True)):
                    slope, offset = np.polyfit(u.numpy(), v.numpy(), 1)
                    fit = correction._fit
                    assert float(fit.slope[place][c]) == pytest.approx(slope, rel=1e-4, abs=1e-6)
                    assert float(fit.offset[place][c]) == pytest.approx(offset, abs=1e-5)


def test_branches_are_pooled_unless_asked() -> None:
    profile, runs = calibrate(MLP), record("blocks.0.mlp")
    fit = ChannelCorrection(profile=profile)._fit
    x = torch.cat([by_channel(features[2]) for features in runs], dim=1)
    y = torch.cat([by_channel(features[4]) for features in runs], dim=1)
    slope, _ = np.polyfit(x[0].numpy(), y[0].numpy(), 1)
    row = read_rows(profile).index("blocks.0.mlp")
    assert fit.slope.shape[0] == 1
    assert float(fit.slope[0, row, 4, 0, 1, 0]) == pytest.approx(slope, rel=1e-4)


def test_profiles_merge_by_adding() -> None:
    whole, given = calibrate(MLP, batch=2), request(2)
    halves = [
        calibrate(
            MLP,
            given=replace(
                given,
                latents=given.latents[k : k + 1],
                cond=given.cond[k : k + 1],
                uncond=given.uncond[k : k + 1],
            ),
        )
        for k in range(2)
    ]
    merged = Profile.merge(halves)
    assert merged.samples == whole.samples
    for name, value in whole.statistics.items():
        torch.testing.assert_close(merged.statistics[name], value, rtol=1e-5, atol=1e-5)


def test_calibration_changes_no_bit() -> None:
    expected = sample(network=BlockFlow())
    assert torch.equal(sample(FeatureProfiler(sites=SPAN)).sample, expected.sample)


# ------------------------------------------------------------------------- the policy
@pytest.mark.parametrize("sites", [SPAN, MLP])
@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=2.0)])
def test_groups_of_one_step_change_no_bit(sites: Select, guidance: Any) -> None:
    policy = CacheQuant(profile=calibrate(sites, guidance=guidance), interval=1, sites=sites)
    network, plain = BlockFlow(), BlockFlow()
    counts = visits(network, "blocks.0.mlp.up")
    found, expected = (
        sample(policy, network=network, guidance=guidance),
        sample(network=plain, guidance=guidance),
    )
    assert torch.equal(found.sample, expected.sample)
    assert counts["blocks.0.mlp.up"] == plain.calls


@pytest.mark.parametrize("correction", [False, True])
def test_the_reused_part_runs_once_a_group(correction: bool) -> None:
    profile = calibrate()
    policy = CacheQuant(profile=profile, interval=3, sites=SPAN, correction=correction)
    steps = GroupedSteps(profile=profile, interval=3).plan(STEPS).computed
    network = BlockFlow()
    counts = visits(network, "blocks.0.mlp.up")
    found = sample(policy, network=network)
    assert counts["blocks.0.mlp.up"] == 2 * len(steps) == 2 * 2
    assert network.calls == 2 * STEPS
    assert found.trace.work < found.trace.network_samples


def test_what_is_reused_is_corrected_and_what_is_kept_is_not() -> None:
    profile = calibrate(MLP, guidance=NoGuidance())
    correction = ChannelCorrection(profile=profile)
    at = At(sites=MLP, when=SkipPolicy(steps=(0, 5)), then=correction)
    network, seen = BlockFlow(), []
    block = network.get_submodule("blocks.0.mlp")
    block.register_forward_hook(lambda *args: seen.append(args[2].clone()))
    sample(at, network=network, guidance=NoGuidance())
    row = read_rows(profile).index("blocks.0.mlp")
    for step in range(1, 5):
        slope = correction._fit.slope[0, row, step, 0, step - 1].float()
        offset = correction._fit.offset[0, row, step, 0, step - 1].float()
        # always from the first feature: corrections do not add up
        torch.testing.assert_close(seen[step], slope * seen[0] + offset)
        assert not torch.equal(seen[step], seen[0])


def test_a_correction_lowers_the_error_of_the_reused_feature() -> None:
    """On the trajectory that it was fitted to, as least squares must."""
    profile = calibrate(MLP, guidance=NoGuidance())
    fit = ChannelCorrection(profile=profile)._fit
    (features,) = record("blocks.0.mlp", NoGuidance())
    row = read_rows(profile).index("blocks.0.mlp")
    for lag in (1, 3):
        slope, offset = (t[0, row, 4, 0, lag - 1].float() for t in (fit.slope, fit.offset))
        stale, fresh = features[4 - lag], features[4]
        corrected = (slope * stale + offset - fresh).norm()
        assert corrected < 0.9 * (stale - fresh).norm()


def test_samples_that_were_kept_at_different_steps_have_lines_of_their_own() -> None:
    correction = ChannelCorrection(profile=calibrate(MLP))
    (line,) = correction._make(0, 0, 4, (1, 3))
    fit = correction._fit
    x = torch.randn(2, 5, fit.slope.shape[-1])
    for row, lag in enumerate((1, 3)):
        slope, offset = (t[0, 0, 4, 0, lag - 1].float() for t in (fit.slope, fit.offset))
        torch.testing.assert_close(line(x)[row], slope * x[row] + offset)
    with pytest.raises(ProfileError, match="of 2 samples"):
        line(x[:1])


def test_a_budget_of_calls_is_so_many_groups() -> None:
    profile = calibrate(interval=6)
    for calls in (1, 2, 3, STEPS):
        assert GroupedSteps(profile=profile, budget={"calls": calls}).plan(STEPS).calls == calls
    assert set(CacheQuant(profile=profile, sites=SPAN).parts()[0].when.schedules(STEPS)) == set(
        range(1, STEPS + 1)
    )


def test_a_budget_of_work_is_kept() -> None:
    policy = CacheQuant(
        profile=calibrate(interval=6, guidance=NoGuidance()), sites=SPAN, budget={"work": 4.0}
    )
    found = sample(policy, guidance=NoGuidance())
    assert found.trace.work <= 4.0 * 2 + 1e-6  # two samples
    assert found.trace.work > 2.0 * 2


def test_beside_a_step_rule_groups_are_refreshed_at_the_next_computed_step() -> None:
    profile = calibrate(interval=3, guidance=NoGuidance())
    steps = GroupedSteps(profile=profile, interval=3).plan(STEPS).computed
    left_out = [k for k in range(STEPS) if k != steps[1]]
    network = BlockFlow()
    counts = visits(network, "blocks.0.mlp.up")
    policy = CacheQuant(profile=profile, interval=3, sites=SPAN)
    sample(SkipPolicy(steps=tuple(left_out)), policy, network=network, guidance=NoGuidance())
    assert counts["blocks.0.mlp.up"] == 2
    assert network.calls == STEPS - 1


# ------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: CacheQuant(profile=p, interval=0), PolicyError, "must be at least 1"),
        (lambda p: FeatureProfiler(interval=0), PolicyError, "must be at least 1"),
        (lambda p: GroupedSteps(profile=p, grouping="odd"), PolicyError, "'optimal' or 'even'"),
        (
            lambda p: CacheQuant(profile=p, interval=2, budget={"calls": 3}),
            PolicyError,
            "a budget solves for interval",
        ),
        (lambda p: GroupedSteps(profile=p, budget={"psnr": 30}), PolicyError, "has no profile"),
        (lambda p: GroupedSteps(profile=p).plan(7), ProfileError, "a profile of 6 steps"),
        (lambda p: sample(CacheQuant(sites=SPAN)), PolicyError, "needs profile="),
        (
            lambda p: sample(CacheQuant(profile=p, interval=3, sites=MLP)),
            ProfileError,
            r"lines for the residual of blocks\.0:blocks\.\d, but the output of blocks\.0\.mlp",
        ),
        (
            lambda _: sample(CacheQuant(profile=calibrate(interval=2), interval=9, sites=SPAN)),
            PolicyError,
            r"5 steps back, the profile has 3; calibrate with an interval of 9",
        ),
    ],
)
def test_what_cannot_work_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(calibrate())


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("budget", [None, {"work": 4.0}])
def test_a_profile_of_another_network_is_refused(correction: bool, budget: Any) -> None:
    profile = calibrate(interval=6)
    profile.fingerprint["model.network"] = "Other"
    options = {"budget": budget} if budget else {"interval": 3}
    policy = CacheQuant(profile=profile, sites=SPAN, correction=correction, **options)
    with pytest.raises(ProfileMismatchError, match=r"model\.network"):
        sample(policy)
    allowed = replace(policy, allow=("model.network",))
    assert sample(allowed).sample.isfinite().all()


def test_a_configuration_says_the_same() -> None:
    (policy,) = build_policies(
        [
            {
                "cachequant": {
                    "profile": "features.safetensors",
                    "interval": 4,
                    "sites": {"kind": ["block"], "depth": "1:-1", "span": True},
                    "shrink": 100.0,
                }
            }
        ]
    )
    assert isinstance(policy, CacheQuant)
    assert policy.sites == Select(kind=("block",), depth="1:-1", span=True)
    (again,) = build_policies([{"cachequant": options_of(policy)}])
    assert repr(again) == repr(policy)


def test_its_parts_serve_alone() -> None:
    written = {
        "at": {
            "sites": {"branch": 1},
            "when": {"grouped_steps": {"profile": "f.safetensors", "interval": 3}},
            "then": {"channel_correction": {"profile": "f.safetensors"}},
        }
    }
    (policy,) = build_policies([written])
    parts: list[Policy] = [policy.when, policy.then]
    assert [type(part) for part in parts] == [GroupedSteps, ChannelCorrection]
    assert math.isclose(policy.then.shrink, 0.0)
