"""The closed form: features, normal equations, held-out errors and what they choose."""

from __future__ import annotations

import pytest
import torch

from erta_policies.fitted import _features as features
from erta_policies.fitted._normal_equations import (
    FOLDS,
    FitSettings,
    choose_weights,
    solve_ridge,
    squared_error,
    sum_products,
    target_weights,
)
from erta_policies.forecast import adams

BASE = {
    "velocities": 3,
    "latent": 0,
    "displacement": 0,
    "trajectory": 1.0,
    "ridge": 0.0,
    "toward": 0,
    "bound": 100.0,
    "computed": 1,
    "averaged": 1,
}
NODES, INTERVAL = (0.5, 0.7, 0.9), (0.4, 0.3)


def settings(**changed):
    return FitSettings(**{**BASE, **changed})


def tensors(count, batch=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, 3, 4, generator=generator).double() for _ in range(count)]


def sums(values, batch=6, per_channel=False):
    return sum_products(values, torch.arange(batch) % FOLDS, per_channel)


def observed(weights, noise=0.0, seed=0):
    """Features of three velocities and a target that combines them."""
    v1, v2, v3, x, start, error = tensors(6, seed=seed)
    found = features.build_features([v1, v2, v3], x, start, 3)
    target = sum(w * f for w, f in zip(weights, found, strict=True)) + noise * error
    return [*found, v1, target]


def test_differences_as_weights_of_velocities():
    v = tensors(4)
    found = features.build_features(v[:3], v[3], v[3], 3)
    row = [0.3, -1.2, 0.7, 0.0, 0.0]
    raw = features.to_raw_weights(row, 3)
    one = sum(w * f for w, f in zip(row, found, strict=True))
    other = sum(w * f for w, f in zip(raw, v[:3], strict=False))
    torch.testing.assert_close(one, other)
    assert features.to_raw_weights([1.0, 1.0, 1.0, 0.0, 0.0], 3)[:3] == [3.0, -3.0, 1.0]


def test_the_line_is_adams_bashforth():
    raw = features.to_raw_weights(features.line_weights(NODES, *INTERVAL, 3), 3)
    assert raw[:2] == pytest.approx(adams(NODES[:2], *INTERVAL))
    assert features.line_weights(NODES[:1], *INTERVAL, 3) == features.velocity_weights(3)


def test_plain_reuse_is_the_newest_velocity_and_the_displacement():
    v, x, start = tensors(3)
    found = features.build_features([v], x, start, 3)
    answer = sum(w * f for w, f in zip(features.plain_weights(3), found, strict=True))
    torch.testing.assert_close(answer, x + (v - start))


def test_an_exact_combination_is_found():
    weights = [0.8, 1.5, -0.6, 0.2, 0.4]
    total = sums(observed(weights)).sum(dim=0)
    chosen = settings(latent=1, displacement=1)
    found = solve_ridge(total, range(5), torch.zeros(1, 5).double(), target_weights(chosen), 0.0)
    torch.testing.assert_close(found[0], torch.tensor(weights).double())
    assert float(squared_error(total, found, target_weights(chosen))) < 1e-9


def test_the_penalty_pulls_to_the_prior():
    total = sums(observed([0.8, 1.5, -0.6, 0.0, 0.0])).sum(dim=0)
    prior = torch.tensor([features.velocity_weights(3)]).double()
    found = solve_ridge(total, range(3), prior, target_weights(settings()), 1e9)
    torch.testing.assert_close(found, prior, atol=1e-6, rtol=0)


def test_the_error_is_that_of_the_samples():
    values = observed([0.8, 1.5, -0.6, 0.0, 0.0], noise=0.3)
    weights = torch.tensor([[0.5, 0.1, -0.2, 0.3, 0.7]]).double()
    for share in (0.0, 0.4, 1.0):
        chosen = settings(trajectory=share)
        target = (1 - share) * values[-2] + share * values[-1]
        direct = sum(w * f for w, f in zip(weights[0], values[:5], strict=True)) - target
        found = squared_error(sums(values).sum(dim=0), weights, target_weights(chosen))
        torch.testing.assert_close(found, (direct**2).sum())


def test_sums_of_parts_are_the_sums_of_all():
    values = observed([0.8, 1.5, -0.6, 0.0, 0.0], noise=0.1)
    for per_channel in (False, True):
        folds = torch.arange(6) % FOLDS
        parts = [
            sum_products([v[rows] for v in values], folds[rows], per_channel)
            for rows in (slice(0, 2), slice(2, 6))
        ]
        joint = sum_products(values, folds, per_channel)
        torch.testing.assert_close(parts[0] + parts[1], joint)
        merged = choose_weights(parts[0] + parts[1], settings(), NODES, INTERVAL, False)
        together = choose_weights(joint, settings(), NODES, INTERVAL, False)
        assert merged.name == together.name == "fitted 3"
        torch.testing.assert_close(merged.weights, together.weights)


def test_channels_have_weights_of_their_own():
    values = observed([1.0, 0.0, 0.0, 0.0, 0.0])
    v1, target = values[0], values[-1]
    target[:, 0] = 2 * v1[:, 0]
    target[:, 1] = -v1[:, 1]
    found = choose_weights(
        sums(values, per_channel=True), settings(velocities=3), NODES, INTERVAL, False
    )
    torch.testing.assert_close(found.weights[:, 0], torch.tensor([2.0, -1.0]).double())
    assert found.error < 1e-9


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (features.velocity_weights(3), "velocity"),
        (features.plain_weights(3), "plain"),
        (features.line_weights(NODES, *INTERVAL, 3), "taylor"),
    ],
)
def test_a_rule_that_is_right_is_chosen(row, name):
    values = observed(row)
    assert choose_weights(sums(values), settings(ridge=1e-3), NODES, INTERVAL, False).name == name


def test_noise_is_not_fitted():
    # two samples of four elements: three weights explain them and no other sample
    v1, v2, v3, x, start, error = (t[:2, :1, :1, :4] for t in tensors(6, seed=3))
    found = features.build_features([v1, v2, v3], x, start, 3)
    line = features.line_weights(NODES, *INTERVAL, 3)
    target = sum(w * f for w, f in zip(line, found, strict=True)) + 0.3 * error
    moments = sum_products([*found, v1, target], torch.arange(2), False)
    chosen = choose_weights(moments, settings(), NODES, INTERVAL, False)
    everything = solve_ridge(
        moments.sum(dim=0), range(3), torch.zeros(1, 5).double(), target_weights(settings()), 0.0
    )
    inside = float(squared_error(moments.sum(dim=0), everything, target_weights(settings())))
    assert chosen.name == "taylor"
    assert inside < chosen.error


def test_without_two_folds_nothing_is_fitted():
    values = [value[:1] for value in observed([0.8, 1.5, -0.6, 0.0, 0.0])]
    moments = sum_products(values, torch.zeros(1, dtype=torch.long), False)
    assert choose_weights(moments, settings(), NODES, INTERVAL, False).name in (
        "taylor",
        "velocity",
    )


def test_large_weights_are_refused():
    values = observed([0.8, 15.0, -9.0, 0.0, 0.0])
    assert choose_weights(sums(values), settings(), NODES, INTERVAL, False).name == "fitted 3"
    bounded = choose_weights(sums(values), settings(bound=3.0), NODES, INTERVAL, False)
    largest = features.to_raw_weights(bounded.weights[0].tolist(), 3)
    assert max(map(abs, largest)) <= 3.0


def test_a_computed_step_may_be_left_alone():
    values = observed([0.8, 1.5, -0.6, 0.0, 0.0])
    assert choose_weights(sums(values), settings(), NODES, INTERVAL, True).name == "fitted 3"
    assert (
        choose_weights(sums(values), settings(computed=0), NODES, INTERVAL, True).name == "velocity"
    )


def test_settings_as_numbers():
    chosen = settings(latent=1, trajectory=0.3, ridge=1e-5)
    assert FitSettings.of(chosen.row().tolist()) == chosen
