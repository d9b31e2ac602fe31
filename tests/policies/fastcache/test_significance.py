"""The tests of movement: the published one accepts everything, the others are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from erta_framework.errors import PolicyError
from erta_policies.fastcache import (
    DriftGate,
    SurrogateProfiler,
    accept_as_published,
    find_chi_square_ratio,
)
from erta_policies.fastcache._significance import (
    AdaptiveTest,
    CalibratedTest,
    Movement,
    ThresholdTest,
    measure_saliency,
)
from erta_policies.shared import SurrogateTable
from module_plans import request, sample

PROFILE = sample(SurrogateProfiler()).emitted[0]


def movement(now, kept, progress=0.5, path="blocks.0"):
    return Movement(now, kept, path, 0, progress)


# --------------------------------------------------------------------- the published test
@pytest.mark.parametrize(
    ("numbers", "bound"), [(512, 1.10), (256 * 1152, 1.0043), (4096 * 3072, 1.0007)]
)
def test_the_published_test_is_vacuous(numbers, bound):
    """Its bound on the squared relative change is 1 and a bit: up to 100 % counts as no change."""
    digits = 2 if bound == 1.10 else 4
    assert round(find_chi_square_ratio(numbers, 0.05), digits) == bound
    assert bool(accept_as_published(torch.linspace(0, 1, 101), numbers).all())
    assert not bool(accept_as_published(torch.tensor(1.06), numbers))


def test_the_published_test_hardly_knows_its_level():
    """From alpha = 0.5 to 0.001 the bound of a DiT block moves by less than 1 %."""
    bounds = [find_chi_square_ratio(256 * 1152, level) for level in (0.5, 0.05, 0.001)]
    assert max(bounds) - min(bounds) < 0.01


def test_no_test_in_use_is_the_published_one():
    names = {type(DriftGate(test=name, profile=None).tests) for name in ("threshold", "adaptive")}
    assert names == {ThresholdTest, AdaptiveTest}
    with pytest.raises(PolicyError, match="threshold, calibrated, adaptive"):
        DriftGate(test="published")


@pytest.mark.parametrize(
    ("freedom", "level", "exact"),
    # quantiles of tables
    [(3, 0.05, 7.8147), (10, 0.05, 18.307), (10, 0.95, 3.9403), (100, 0.01, 135.807)],
)
def test_chi_square_quantiles_are_those_of_tables(freedom, level, exact):
    assert find_chi_square_ratio(freedom, level) * freedom == pytest.approx(exact, rel=0.01)


def test_chi_square_quantiles_are_those_of_draws():
    draws = torch.randn(20000, 40, generator=torch.Generator().manual_seed(0)).square().mean(dim=1)
    for level in (0.05, 0.2):
        accepted = (draws <= find_chi_square_ratio(40, level)).double().mean()
        assert float(accepted) == pytest.approx(1 - level, abs=0.01)


@pytest.mark.parametrize(("freedom", "level"), [(0, 0.05), (5, 0.0), (5, 1.0), (math.nan, 0.1)])
def test_chi_square_settings_are_checked(freedom, level):
    with pytest.raises(PolicyError, match="chi-square"):
        find_chi_square_ratio(freedom, level)


# ------------------------------------------------------------------------------ in use
def test_a_threshold_is_the_bound_of_each_sample():
    kept = torch.ones(3, 2, 4)
    now = kept * torch.tensor([1.05, 1.2, math.nan]).reshape(3, 1, 1)
    found = ThresholdTest(0.1)(movement(now, kept))
    assert found[:2].tolist() == pytest.approx([0.5, 2.0], rel=1e-4)
    assert not bool(found[2] <= 1)
    assert torch.isinf(ThresholdTest(0.0)(movement(kept, kept))).all()


def test_half_precision_does_not_overflow():
    kept = torch.full((1, 64, 64), 300.0, dtype=torch.float16)
    assert ThresholdTest(0.1)(movement(kept * 1.05, kept)).item() == pytest.approx(0.5, rel=0.02)
    adaptive = AdaptiveTest((0.1, 0.0, 0.0, 0.0), 0.0, "variance")
    assert adaptive(movement(kept * 1.05, kept)).item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_adaptive_threshold_is_the_formula(progress):
    betas = (0.01, 0.5, -0.002, 5e-5)
    kept = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    now = kept + 0.01 * torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    drift = (now - kept).flatten(1).norm(dim=1) / kept.flatten(1).norm(dim=1)
    moved = (now - kept).norm(dim=2).square()
    spread = (moved / moved.amax(dim=1, keepdim=True)).var(dim=1, correction=0)
    for name, varied in (("drift", drift), ("variance", spread)):
        bound = 0.01 + 0.5 * varied - 0.002 * progress + 5e-5 * progress**2
        found = AdaptiveTest(betas, 0.0, name)(movement(now, kept, progress))
        assert torch.allclose(found, drift / bound, rtol=1e-4)


def test_the_published_betas_accept_up_to_two_per_cent():
    """With the drift as S, b1 = 0.5 leaves b0 / 0.5 at first and a little less at the end."""
    kept = torch.ones(1, 2, 4)
    test = AdaptiveTest((0.01, 0.5, -0.002, 5e-5), 0.0, "drift")

    def accepts(drift, progress):
        return bool(test(movement(kept * (1 + drift), kept, progress)) <= 1)

    assert accepts(0.0199, 0.0)
    assert not accepts(0.0201, 0.0)
    assert accepts(0.0160, 1.0)
    assert not accepts(0.0162, 1.0)


def test_the_floor_of_the_adaptive_threshold_decides_in_effect():
    """0.05, as released, lies above all that the formula gives: it is a plain threshold."""
    kept = torch.ones(1, 2, 4)
    adaptive = AdaptiveTest((0.01, 0.5, -0.002, 5e-5), 0.05, "drift")
    for drift in (0.01, 0.03, 0.049, 0.051, 0.07):
        now = kept * (1 + drift)
        assert bool(adaptive(movement(now, kept)) <= 1) == bool(
            ThresholdTest(0.05)(movement(now, kept)) <= 1
        )


def test_a_calibrated_test_knows_what_usual_movement_is():
    """What moves as little as the quantile is accepted; twice as far is not."""
    table = SurrogateTable(PROFILE, "residual", 1e-3, None)
    test = CalibratedTest(table, 0.05, 0.25, "tokens")
    usual = table.find_innovation("blocks.0", 0, 0.25) ** 0.5
    kept = torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(1))
    direction = direction / direction.square().mean().sqrt()
    bound = find_chi_square_ratio(32, 0.05) ** 0.5
    for factor in (0.5, 0.99 * bound, 1.01 * bound, 2.0):
        accepted = test(movement(kept + factor * usual * direction, kept)) <= 1
        assert bool(accepted) == (factor < bound)


def test_fewer_degrees_of_freedom_are_a_wider_bound():
    table = SurrogateTable(PROFILE, "residual", 1e-3, None)
    dimensions = table.count_dimensions("blocks.1", 0)
    assert 1.0 <= dimensions <= 8.0
    kept, now = torch.zeros(1, 32, 8), torch.ones(1, 32, 8)
    found = [
        CalibratedTest(table, 0.05, 0.25, freedom)(movement(now, kept, path="blocks.1")).item()
        for freedom in ("tokens", "spectrum")
    ]
    assert found[1] < found[0]


@pytest.mark.parametrize("freedom", ["tokens", "spectrum"])
def test_a_calibrated_gate_reuses_some_blocks(freedom):
    gate = DriftGate(test="calibrated", profile=PROFILE, quantile=0.4, freedom=freedom)
    found = sample(gate, given=request())
    ran = sum(c.sites["block"][0] for c in found.trace.calls())
    assert 3 * 2 * 2 < ran < 3 * 2 * 6


def test_saliency_is_relative_to_the_token_that_moves_most():
    kept = torch.zeros(1, 3, 2)
    now = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    assert measure_saliency(movement(now, kept)).tolist() == [[0.0, 0.25, 1.0]]
    assert measure_saliency(movement(kept, kept)).tolist() == [[0.0, 0.0, 0.0]]
