"""Errors, phi, affine fits and descriptions read from a profile."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from erta_framework import CFG, Profile
from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError
from erta_policies.ertacache import affine_fit, pair_errors, predict_errors
from erta_policies.ertacache._statistics import phi_table

STEPS = 4


def profile_of(samples: Tensor, **pairs: Tensor) -> Profile:
    """Two branches, four steps; every pair statistic not given is 0."""
    zeros = torch.zeros(2, STEPS, STEPS, dtype=torch.float64)
    names = ("ratio", "phi_velocity", "phi_difference")
    moments = {n: torch.zeros(2, STEPS, STEPS, 3) for n in ("v", "vv", "e", "ee", "ve")}
    return Profile(
        kind="residual_profiler",
        fingerprint={"num_steps": str(STEPS), "branches": "cond,uncond"},
        statistics={
            "samples": samples.double(),
            "elements": samples.double() * 5,
            **{name: pairs.get(name, zeros) for name in names},
            **moments,
        },
        samples=int(samples.max()),
    )


def test_errors_are_averaged_over_samples_before_any_comparison() -> None:
    ratio = torch.zeros(2, STEPS, STEPS, dtype=torch.float64)
    ratio[0, 0, 1], ratio[1, 0, 1] = 0.6, 3.0
    profile = profile_of(torch.full((2, STEPS), 3), ratio=ratio)
    assert float(pair_errors(profile, "first")[0, 1]) == pytest.approx(0.2, abs=1e-15)
    assert float(pair_errors(profile, "mean")[0, 1]) == pytest.approx(0.6, abs=1e-15)
    assert float(pair_errors(profile, "max")[0, 1]) == pytest.approx(1.0, abs=1e-15)
    assert torch.equal(pair_errors(profile), pair_errors(profile, "max"))


def test_a_branch_that_begins_later_makes_reuse_impossible() -> None:
    # the unconditional branch runs at steps 2 and 3 only
    samples = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    ratio = torch.full((2, STEPS, STEPS), 0.5, dtype=torch.float64)
    ratio[1, :2, :] = 0.0  # never observed
    for signal in ("first", "mean", "max"):
        errors = pair_errors(profile_of(samples, ratio=ratio), signal)
        assert errors[0, 1] == 0.5
        assert errors[0, 2] == errors[1, 3] == math.inf
        assert errors[2, 3] == 0.5


def test_a_branch_that_ends_earlier_does_not_count_afterwards() -> None:
    samples = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ratio = torch.full((2, STEPS, STEPS), 0.4, dtype=torch.float64)
    ratio[1] = 0.0
    errors = pair_errors(profile_of(samples, ratio=ratio), "mean")
    assert errors[0, 1] == 0.2
    assert errors[0, 2] == errors[1, 3] == 0.4


def test_the_first_branch_that_runs_decides() -> None:
    # batched guidance with an interval: one branch name inside it, another outside
    samples = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    ratio = torch.zeros(2, STEPS, STEPS, dtype=torch.float64)
    ratio[0, 0, 1], ratio[1, 2, 3] = 0.1, 0.7
    errors = pair_errors(profile_of(samples, ratio=ratio))
    assert errors[0, 1] == 0.1
    assert errors[2, 3] == 0.7
    assert errors[1, 2] == errors[0, 3] == math.inf


def test_phi_is_one_where_a_form_is_not_defined() -> None:
    phi = torch.full((2, STEPS, STEPS), 0.5, dtype=torch.float64)
    samples = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    profile = profile_of(samples, phi_velocity=phi, phi_difference=phi.clone())
    assert phi_table(profile, "velocity")[0].tolist() == [0.5, 0.5, 0.5, 0.5]
    # no next velocity at the last step
    assert phi_table(profile, "difference")[0].tolist() == [0.5, 0.5, 0.5, 1.0]
    # nor for the unconditional branch after step 1: the mean is the conditional's alone
    profile.statistics["phi_difference"][1, 0, 1] = 0.0
    assert phi_table(profile, "difference", "mean")[0, 1] == 0.5
    assert phi_table(profile, "velocity", "mean")[0, 1] == 0.5


@pytest.mark.parametrize("per_channel", [False, True])
def test_affine_fit_is_least_squares(world: SimpleNamespace, per_channel: bool) -> None:
    latents = world.noise(4)
    profile = world.calibrate(latents=latents)
    fit = affine_fit(profile, per_channel=per_channel)
    xs, outputs = world.plain(latents)
    for j, i in ((0, 1), (0, 5), (3, 4), (2, 7)):
        reused = (xs[i] + outputs["cond"][j] - xs[j]).double()
        error = reused - outputs["cond"][i].double()
        groups = [slice(c, c + 1) for c in range(2)] if per_channel else [slice(None)]
        for row, group in enumerate(groups):
            v = reused[:, group].flatten().numpy()
            e = error[:, group].flatten().numpy()
            design = np.stack([v, np.ones_like(v)], axis=1)
            (slope, offset), *_ = np.linalg.lstsq(design, e, rcond=None)
            rest = e - design @ np.array([slope, offset])
            assert float(fit.slope[0, j, i, row]) == pytest.approx(slope, abs=2e-6)
            assert float(fit.offset[0, j, i, row]) == pytest.approx(offset, abs=2e-6)
            assert float(fit.r2[0, j, i, row]) == pytest.approx(1 - rest.var() / e.var(), abs=1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
def test_k_and_b_linearised_are_the_line(world: SimpleNamespace, per_channel: bool) -> None:
    fit = affine_fit(world.calibrate(guidance=world.cfg), per_channel=per_channel)
    for v in (-2.0, 0.0, 0.7, 3.0):
        paper = fit.k * v / 4 + fit.b / 4 + 0.5
        torch.testing.assert_close(paper, fit.mean_y + fit.slope * (v - fit.mean_x))
        torch.testing.assert_close(paper, fit.slope * v + fit.offset)
    assert fit.slope.abs().max() > 0.01  # the identity is not one of zeros


def test_no_variance_gives_slope_zero_and_the_mean_error() -> None:
    profile = profile_of(torch.ones(2, STEPS))
    count = 5.0  # elements of one channel
    profile.statistics["v"][:] = 2.0 * count
    profile.statistics["vv"][:] = 4.0 * count
    profile.statistics["e"][:] = 0.25 * count
    profile.statistics["ee"][:] = 0.0625 * count
    profile.statistics["ve"][:] = 0.5 * count
    for per_channel in (False, True):
        fit = affine_fit(profile, per_channel=per_channel)
        assert (fit.slope == 0).all()
        assert (fit.offset == 0.25).all()
        assert (fit.r2 == 0).all()


def test_describe_averages_over_the_reused_pairs(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=world.cfg)
    plan = StepSchedule.of({0, 3, 7}, 8, threshold=0.7)
    pairs = [(0, 1), (0, 2), (3, 4), (3, 5), (3, 6)]
    errors = pair_errors(profile)
    facts = predict_errors(profile, plan).describe()

    def average(table: Tensor) -> float:
        return float(torch.stack([table[j, i] for j, i in pairs]).mean())

    assert facts["calls"] == 3.0
    assert facts["threshold"] == 0.7
    assert facts["error"] == pytest.approx(average(errors), rel=1e-12)
    assert facts["predicted"] == pytest.approx(len(pairs) * average(errors), rel=1e-12)
    for form in ("velocity", "difference"):
        expected = average(phi_table(profile, form))
        assert facts[f"phi_{form}"] == pytest.approx(expected, rel=1e-12)
    for name, per_channel in (("r2", False), ("r2_channel", True)):
        r2 = affine_fit(profile, per_channel).r2.mean(dim=(0, 3))
        assert facts[name] == pytest.approx(average(r2), rel=1e-12)
        assert 0 < facts[name] <= 1
    assert facts["r2_channel"] >= 0
    assert set(facts) == {
        "calls", "threshold", "error", "predicted",
        "phi_velocity", "phi_difference", "r2", "r2_channel",
    }  # fmt: skip


def test_describe_leaves_out_what_did_not_run(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=CFG(scale=3.0, stop=0.5))
    facts = predict_errors(profile, StepSchedule.of({0, 4, 7}, 8)).facts
    r2 = affine_fit(profile, per_channel=False).r2[..., 0]
    both = [(0, 1), (0, 2), (0, 3)]
    alone = [(4, 5), (4, 6)]
    values = [float(r2[b, j, i]) for b in (0, 1) for j, i in both]
    values += [float(r2[0, j, i]) for j, i in alone]
    assert facts["r2"] == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_describe_without_reuse_or_lambda_is_nan(world: SimpleNamespace) -> None:
    plan = predict_errors(world.calibrate(), StepSchedule.of(range(8), 8))
    assert (plan.calls, plan.threshold, plan.predicted) == (8, None, 0.0)
    assert plan.facts
    assert all(math.isnan(value) for value in plan.facts.values())
    assert plan.describe() == {"calls": 8.0, "predicted": 0.0}


def test_describe_refuses_a_plan_of_another_length(world: SimpleNamespace) -> None:
    with pytest.raises(ProfileError, match="the plan has 5 steps, the profile 8"):
        predict_errors(world.calibrate(), StepSchedule.of({0}, 5))


def test_fits_of_merged_profiles_weigh_samples(world: SimpleNamespace) -> None:
    # three samples and one: the merged error is the mean of four, not of two means
    few, many = world.noise(1, seed=1), world.noise(3, seed=2)
    one, three = (pair_errors(world.calibrate(latents=x)) for x in (few, many))
    merged = Profile.merge([world.calibrate(latents=few), world.calibrate(latents=many)])
    torch.testing.assert_close(pair_errors(merged), (one + 3 * three) / 4)
    assert merged.samples == 4
    assert replace(merged, samples=0).digest != merged.digest
