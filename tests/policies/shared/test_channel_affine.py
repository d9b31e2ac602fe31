"""Lines for each channel: least squares from sums that merge, the guard, and how they apply."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from erta_framework.errors import ProfileError
from erta_policies.shared import ChannelAffine, PairMoments, fit_line


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def solve(x: Tensor, y: Tensor) -> tuple[float, float]:
    design = np.stack([x.double().numpy(), np.ones(len(x))], axis=1)
    (slope, offset), *_ = np.linalg.lstsq(design, y.double().numpy(), rcond=None)
    return float(slope), float(offset)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4, 5, 6), 1), ((3, 7, 4), -1), ((3, 4), 1)])
def test_a_line_is_least_squares_of_its_own_channel(shape: tuple[int, ...], dim: int) -> None:
    x = draw(0, *shape)
    y = 0.3 * x + draw(1, *shape) + 0.5
    fit = fit_line(PairMoments.of(x, y, dim))
    for c in range(4):
        slope, offset = solve(x.select(dim, c).flatten(), y.select(dim, c).flatten())
        assert float(fit.slope[c]) == pytest.approx(slope, abs=1e-9)
        assert float(fit.offset[c]) == pytest.approx(offset, abs=1e-9)


def test_sums_of_two_batches_fit_like_one_batch() -> None:
    x, y = draw(0, 5, 3, 8), draw(1, 5, 3, 8)
    parts = PairMoments.of(x[:2], y[:2], 1) + PairMoments.of(x[2:], y[2:], 1)
    whole, added = fit_line(PairMoments.of(x, y, 1)), fit_line(parts)
    torch.testing.assert_close(added.slope, whole.slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(added.left, whole.left, rtol=1e-12, atol=0)


def test_pooled_channels_are_one_channel() -> None:
    x, y = draw(0, 5, 3, 8), draw(1, 5, 3, 8)
    pooled = fit_line(PairMoments.of(x, y, 1).pool())
    slope, offset = solve(x.flatten(), y.flatten())
    assert pooled.slope.shape == (1,)
    assert float(pooled.slope) == pytest.approx(slope, abs=1e-9)
    assert float(pooled.offset) == pytest.approx(offset, abs=1e-9)


def explode(x: Tensor, y: Tensor) -> float:
    """The slope without a guard."""
    return fit_line(PairMoments.of(x, y, 1), least=0.0).slope.abs().max().item()


@pytest.mark.parametrize("level", [0.0, 1.0, 1e3])
def test_a_channel_that_stands_still_is_shifted_only(level: float) -> None:
    spread = 5e-5 * max(1.0, level)
    x = level + spread * draw(0, 8, 1, 64).double()
    y = level + 0.25 + 1e4 * spread * draw(1, 8, 1, 64).double()
    assert explode(x, y) > 100  # otherwise the guard would guard nothing
    fit = fit_line(PairMoments.of(x, y, 1))
    assert fit.slope.tolist() == [1.0]
    assert float(fit.offset) == pytest.approx(float((y - x).mean()), abs=1e-9)


def test_the_guard_leaves_small_channels_that_move() -> None:
    x = 1e-3 * draw(0, 8, 1, 64)  # variance 1e-6, far above the guard of 1e-8
    assert fit_line(PairMoments.of(x, 2 * x, 1)).slope.item() == pytest.approx(2.0)


@pytest.mark.parametrize("flat", [0.0, 1.0])
def test_shrinking_moves_a_slope_towards_the_flat_one(flat: float) -> None:
    x = draw(0, 1, 2, 30)
    y = 3 * x + draw(1, 1, 2, 30)
    moments = PairMoments.of(x, y, 1)
    free = fit_line(moments, flat).slope
    half = fit_line(moments, flat, shrink=30).slope
    torch.testing.assert_close(half - flat, (free - flat) / 2)
    shrunk = fit_line(moments, flat, shrink=30)
    # still through both means
    torch.testing.assert_close(shrunk.slope * shrunk.mean_x + shrunk.offset, shrunk.mean_y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((2, 3, 4, 5), 1), ((2, 9, 3), -1)])
def test_an_applied_line_keeps_type_and_input(
    dtype: torch.dtype, shape: tuple[int, ...], dim: int
) -> None:
    slope, offset = torch.tensor([1.0, 2.0, -0.5]), torch.tensor([0.0, 0.25, 1.0])
    line = ChannelAffine(slope.double(), offset.double(), dim, "a test")
    x = draw(0, *shape).to(dtype)
    before = x.clone()
    got = line(x)
    assert got.dtype is dtype
    assert torch.equal(x, before)
    for c in range(3):
        wide = x.select(dim, c).to(torch.promote_types(dtype, torch.float32))
        assert torch.equal(got.select(dim, c), (slope[c] * wide + offset[c]).to(dtype))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: ChannelAffine(torch.ones(3), torch.zeros(3), 1, "at")(torch.ones(2, 4, 5)),
            r"at has lines for 3 channels, but the reused tensor is \(2, 4, 5\) with 4",
        ),
        (
            lambda: PairMoments.of(torch.ones(2, 3, 4), torch.ones(2, 3, 5), 1),
            r"one shape, but got \(2, 3, 4\) and \(2, 3, 5\)",
        ),
    ],
)
def test_other_shapes_are_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        act()
