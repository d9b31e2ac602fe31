"""Correction of quantised layers: what it is worth at which width, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import quantize_

from erta_bench.studies import LAYERS, draw_inputs, measure_layer
from erta_framework import Profile
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_policies.cachequant import calibrate_outputs, correct_outputs, keep_weights

FOUR_BITS, THREE_BITS = LAYERS["W4A8"](), LAYERS["W3A8"]()


def make_layer(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 48, bias=bias)).eval()


def calibrate(layer: nn.Sequential, config: Any, x: Tensor) -> tuple[nn.Sequential, Profile]:
    """The layer quantised, and what its correction is fitted to."""
    kept = keep_weights(layer, ".*")
    quantised = copy.deepcopy(layer)
    quantize_(quantised, config)
    return quantised, calibrate_outputs(quantised, kept, lambda: quantised(x), samples=len(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["W4A8", "W3A8"])
def test_few_bits_and_inputs_with_means_are_worth_correcting(name: str, bias: bool) -> None:
    before, after = measure_layer(LAYERS[name], shifted=True, bias=bias)
    assert before > 0.05
    assert after < 0.75 * before


@pytest.mark.parametrize("name", ["int8 weights", "W8A8"])
@pytest.mark.parametrize("shifted", [False, True])
def test_at_8_bits_there_is_next_to_nothing_to_correct(name: str, shifted: bool) -> None:
    before, after = measure_layer(LAYERS[name], shifted)
    assert before < 0.05
    assert -1e-4 < before - after < 0.005


@pytest.mark.parametrize("name", ["W4A8", "W3A8"])
def test_without_means_there_is_next_to_nothing_to_correct(name: str) -> None:
    before, after = measure_layer(LAYERS[name], shifted=False)
    assert 0.95 * before < after < 1.01 * before


@pytest.mark.parametrize("bias", [False, True])
def test_the_line_is_fitted_without_the_bias(bias: bool) -> None:
    """A larger bias must not change what is corrected."""
    layer, x = make_layer(bias=True), draw_inputs(1)
    shifted = copy.deepcopy(layer)
    if bias:
        with torch.no_grad():
            shifted[0].bias += 100.0
    (one, first), (other, second) = (calibrate(m, FOUR_BITS, x) for m in (layer, shifted))
    with torch.no_grad(), correct_outputs(one, first), correct_outputs(other, second):
        moved = 100.0 if bias else 0.0
        torch.testing.assert_close(one(x) + moved, other(x), rtol=0, atol=1e-3)


def test_profiles_of_two_runs_merge() -> None:
    layer, x = make_layer(), draw_inputs(1)
    _, whole = calibrate(layer, FOUR_BITS, x)
    halves = [calibrate(layer, FOUR_BITS, part)[1] for part in x.chunk(2)]
    merged = Profile.merge(halves)
    assert merged.samples == whole.samples
    for name, value in whole.statistics.items():
        torch.testing.assert_close(merged.statistics[name], value)


def test_corrections_are_on_until_removed_and_change_no_class() -> None:
    layer, x = make_layer(), draw_inputs(1)
    quantised, profile = calibrate(layer, FOUR_BITS, x)
    before = quantised(x)
    forward = nn.Linear.forward
    corrections = correct_outputs(quantised, profile)
    assert corrections.paths == ("0",)
    assert not torch.equal(quantised(x), before)
    assert nn.Linear.forward is forward
    assert "forward" not in vars(quantised[0])
    corrections.remove()
    corrections.remove()  # once more is no error
    assert corrections.paths == ()
    assert torch.equal(quantised(x), before)
    assert not quantised[0]._forward_hooks


def quantised_layer() -> nn.Sequential:
    layer = make_layer()
    quantize_(layer, FOUR_BITS)
    return layer


def correct_twice() -> None:
    quantised, profile = calibrate(make_layer(), FOUR_BITS, torch.ones(4, 64))
    with correct_outputs(quantised, profile):
        correct_outputs(quantised, profile)


def calibrate_corrected() -> None:
    layer = make_layer()
    kept = keep_weights(layer, ".*")
    quantised, profile = calibrate(layer, FOUR_BITS, torch.ones(4, 64))
    with correct_outputs(quantised, profile):
        calibrate_outputs(quantised, kept, lambda: quantised(torch.ones(4, 64)))


def correct_other_bits() -> None:
    _, profile = calibrate(make_layer(), THREE_BITS, torch.ones(4, 64))
    correct_outputs(quantised_layer(), profile)


def calibrate_idle() -> None:
    layer = make_layer()
    kept = keep_weights(layer, ".*")
    quantize_(layer, FOUR_BITS)
    calibrate_outputs(layer, kept, lambda: None)


def calibrate_plain() -> None:
    layer = make_layer()
    calibrate_outputs(layer, keep_weights(layer, ".*"), lambda: layer(torch.ones(4, 64)))


def calibrate_other() -> None:
    layer = nn.Sequential(nn.ReLU(), make_layer())
    calibrate_outputs(make_layer(), keep_weights(layer, ".*"), lambda: None)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: keep_weights(quantised_layer(), ".*"), PolicyError, "0 .* is quantised already"),
        (lambda: keep_weights(make_layer(), "to_q"), PolicyError, "no linear layer .* 'to_q'"),
        (correct_twice, PolicyError, r"corrected already; remove\(\)"),
        (calibrate_corrected, PolicyError, r"corrected already; remove\(\)"),
        (correct_other_bits, ProfileMismatchError, "quantized: profile .* / network "),
        (calibrate_idle, PolicyError, "0 did not run"),
        (calibrate_plain, PolicyError, "0 of Sequential is not quantised"),
        (calibrate_other, ProfileError, "has no linear layer 1.0"),
    ],
)
def test_what_cannot_work_is_refused(
    act: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        act()
