"""Surrogates of a block: the algebra of their forms and of their fits."""

from __future__ import annotations

import pytest
import torch

from erta_framework.errors import PolicyError, ProfileError
from erta_policies.shared import (
    AffineResidual,
    ChangeMoments,
    ChannelAffine,
    LinearFit,
    ResidualReuse,
    RidgeResidual,
    fit_ridge,
)

WIDTH = 6


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moments(moved, changed):
    return ChangeMoments.of(moved, changed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_no_correction_is_residual_reuse_to_the_bit(dtype):
    now, entered, residual = (draw(2, 5, WIDTH, seed=k).to(dtype) for k in range(3))
    reused = ResidualReuse()(now, entered, residual)
    assert torch.equal(reused, now + residual)
    nothing = LinearFit((torch.zeros(WIDTH, WIDTH),))
    assert torch.equal(RidgeResidual(nothing)(now, entered, residual), reused)
    factored = LinearFit((torch.zeros(WIDTH, 2), torch.ones(2, WIDTH)))
    assert torch.equal(RidgeResidual(factored)(now, entered, residual), reused)
    line = ChannelAffine(torch.ones(WIDTH), torch.zeros(WIDTH), dim=-1, who="test")
    assert torch.equal(AffineResidual(line)(now, entered, residual), reused)


def test_every_surrogate_is_exact_where_the_input_stands_still():
    now, residual = draw(1, 4, WIDTH), draw(1, 4, WIDTH, seed=1)
    fit = LinearFit((draw(WIDTH, WIDTH, seed=2),))
    assert torch.equal(RidgeResidual(fit)(now, now, residual), now + residual)


def test_a_linear_block_is_replaced_exactly():
    """Block(H) = H + H W + c, so dR = dH W and the fit finds W."""
    weights, offset = draw(WIDTH, WIDTH), draw(WIDTH, seed=1)
    steps = [draw(2, 7, WIDTH, seed=k) for k in range(2, 8)]
    added = [h @ weights + offset for h in steps]
    sums = moments(steps[1] - steps[0], added[1] - added[0])
    for k in range(2, len(steps)):
        sums = sums + moments(steps[k] - steps[k - 1], added[k] - added[k - 1])
    fit = fit_ridge(sums, ridge=1e-12)
    assert torch.allclose(fit.matrix, weights, atol=1e-8)
    held = draw(2, 7, WIDTH, seed=99)
    found = RidgeResidual(fit)(held, steps[0], added[0])
    assert torch.allclose(found, held + held @ weights + offset, atol=1e-7)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_the_fit_minimises_the_penalised_error(ridge):
    moved, changed = draw(1, 40, WIDTH), draw(1, 40, WIDTH, seed=1)
    fit = fit_ridge(moments(moved, changed), ridge).matrix
    penalty = ridge * float(moved.square().sum()) / WIDTH

    def error(a):
        return (changed - moved @ a).square().sum() + penalty * a.square().sum()

    best = error(fit)
    for seed in range(20):
        assert error(fit + 1e-3 * draw(WIDTH, WIDTH, seed=seed + 5)) > best
    # and it is what stacking the penalty as further rows gives
    rows = torch.cat([moved[0], penalty**0.5 * torch.eye(WIDTH, dtype=torch.float64)])
    targets = torch.cat([changed[0], torch.zeros(WIDTH, WIDTH, dtype=torch.float64)])
    assert torch.allclose(fit, torch.linalg.lstsq(rows, targets).solution, atol=1e-9)


def test_sums_of_parts_are_those_of_the_whole():
    moved, changed = draw(6, 5, WIDTH), draw(6, 5, WIDTH, seed=1)
    whole = moments(moved, changed)
    parts = moments(moved[:1], changed[:1])
    for k in range(1, 6):
        parts = moments(moved[k : k + 1], changed[k : k + 1]) + parts
    assert torch.allclose(parts.gram, whole.gram)
    assert torch.allclose(fit_ridge(parts, 1e-3).matrix, fit_ridge(whole, 1e-3).matrix)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_is_the_best_of_its_rank(rank):
    """No other map of that rank has a smaller penalised error: those found by descent do not."""
    moved = draw(1, 60, WIDTH) @ torch.diag(torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]).double())
    changed = moved @ draw(WIDTH, WIDTH, seed=1) + 0.1 * draw(1, 60, WIDTH, seed=2)
    sums, ridge = moments(moved, changed), 1e-2
    fit = fit_ridge(sums, ridge, rank)
    assert [tuple(f.shape) for f in fit.factors] == [(WIDTH, rank), (rank, WIDTH)]
    assert torch.linalg.matrix_rank(fit.matrix) == rank
    penalty = ridge * float(sums.gram.trace()) / WIDTH

    def error(a):
        return (changed - moved @ a).square().sum() + penalty * a.square().sum()

    best = float(error(fit.matrix))
    for seed in range(3):
        left = draw(WIDTH, rank, seed=seed).requires_grad_()
        right = draw(rank, WIDTH, seed=seed + 9).requires_grad_()
        descent = torch.optim.LBFGS([left, right], max_iter=400, line_search_fn="strong_wolfe")

        def step(left=left, right=right, descent=descent):
            descent.zero_grad()
            loss = error(left @ right)
            loss.backward()
            return loss

        descent.step(step)
        assert float(error((left @ right).detach())) >= best * (1 - 1e-9)


def test_a_rank_that_saves_nothing_is_the_whole_map():
    sums = moments(draw(1, 20, WIDTH), draw(1, 20, WIDTH, seed=1))
    assert len(fit_ridge(sums, 1e-3, rank=WIDTH // 2).factors) == 1
    assert fit_ridge(sums, 1e-3).flops == 2 * WIDTH * WIDTH
    assert fit_ridge(sums, 1e-3, rank=1).flops == 4 * WIDTH


def test_what_never_moved_is_not_corrected():
    sums = moments(torch.zeros(1, 3, WIDTH).double(), draw(1, 3, WIDTH))
    assert torch.equal(fit_ridge(sums, 1e-3).matrix, torch.zeros(WIDTH, WIDTH).double())


def test_half_precision_is_summed_in_float32():
    """Squares of 300 overflow float16, and sums of many small ones stop growing in it."""
    moved = torch.full((1, 4096, 2), 300.0, dtype=torch.float16)
    sums = moments(moved, moved)
    assert sums.gram.dtype == torch.float32
    assert sums.gram[0, 0] == pytest.approx(4096 * 300.0**2, rel=1e-3)


def test_dimensions_count_the_directions_of_movement():
    one = torch.zeros(1, 8, 4)
    one[..., 1] = draw(1, 8, dtype=torch.float32)
    assert moments(one, one).dimensions == pytest.approx(1.0)
    every = torch.eye(4).unsqueeze(0)
    assert moments(every, every).dimensions == pytest.approx(4.0)


@pytest.mark.parametrize("setting", [{"ridge": 0.0}, {"ridge": float("nan")}, {"rank": 0}])
def test_settings_out_of_range_are_refused(setting):
    sums = moments(draw(1, 3, 2), draw(1, 3, 2))
    with pytest.raises(PolicyError, match=next(iter(setting))):
        fit_ridge(sums, **{"ridge": 1e-3, **setting})


def test_other_widths_are_refused():
    with pytest.raises(ProfileError, match=r"\(1, 2, 3\)"):
        RidgeResidual(LinearFit((torch.zeros(2, 2),)))(*[torch.zeros(1, 2, 3)] * 3)
    with pytest.raises(ProfileError, match="select blocks"):
        moments(draw(1, 2, 3), draw(1, 2, 4))
