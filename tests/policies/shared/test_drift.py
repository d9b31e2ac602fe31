"""The drift of a tensor against its kept version, and blends."""

from __future__ import annotations

import math

import pytest
import torch

from erta_framework.errors import InputError, PolicyError
from erta_policies.shared import (
    blend,
    measure_drift,
    measure_norms,
    measure_spread,
    measure_spread_drift,
)


def test_drift_is_relative_and_of_each_sample_alone():
    torch.manual_seed(0)
    kept, move = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    now = kept + torch.tensor([0.0, 0.1, 0.2])[:, None, None] * move
    found = measure_drift(now, kept)
    assert found[0] == 0
    assert found[2] == pytest.approx(2 * found[1].item() * norm_ratio(kept, move), rel=1e-5)
    for row in range(3):
        alone = measure_drift(now[row : row + 1], kept[row : row + 1])
        torch.testing.assert_close(alone, found[row : row + 1])
    # whatever the scale
    torch.testing.assert_close(measure_drift(1000 * now, 1000 * kept), found)


def norm_ratio(kept, move):
    """How much more sample 2 changes than sample 1, for moves of the same part of each."""
    moved = measure_norms(move).mean(1) / measure_norms(kept).mean(1)
    return (moved[2] / moved[1]).item()


def test_drift_over_the_whole_is_the_frobenius_norm():
    torch.manual_seed(0)
    kept, now = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    expected = [((a - b).norm() / b.norm()).item() for a, b in zip(now, kept, strict=True)]
    assert measure_drift(now, kept, over="whole").tolist() == pytest.approx(expected, rel=1e-6)
    assert measure_drift(now, kept).tolist() != pytest.approx(expected, rel=1e-6)


def test_nothing_kept_of_any_size_is_infinitely_far():
    kept = torch.zeros(3, 2, 4)
    now = kept.clone()
    now[1:] = 1.0
    now[2, 0, 0] = math.nan
    found = measure_drift(now, kept).tolist()
    assert found[:2] == [0.0, math.inf]
    assert math.isnan(found[2])
    constant = torch.ones(1, 2, 4)  # without spread
    assert measure_spread_drift(constant, constant).item() == 0.0
    assert measure_spread_drift(torch.randn(1, 2, 4), constant).item() == math.inf


def test_half_precision_neither_overflows_nor_loses_its_sum():
    # the square of 300 is beyond float16, and 1 more is no change of 4096 in it
    kept = torch.full((1, 4096, 2), 300.0, dtype=torch.float16)
    found = measure_drift(kept + 2, kept)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(2 / 300)
    assert measure_drift(kept + 2, kept, over="whole").item() == pytest.approx(2 / 300)
    assert measure_drift(kept.double() + 2, kept.double()).dtype == torch.float64


def test_channels_of_images_are_their_second_dimension():
    torch.manual_seed(0)
    kept, now = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    a, b = (x.flatten(2).transpose(1, 2) for x in (now, kept))
    torch.testing.assert_close(measure_drift(now, kept, channels=1), measure_drift(a, b))
    torch.testing.assert_close(
        measure_spread_drift(now, kept, channels=1), measure_spread_drift(a, b)
    )


def test_spread_is_over_the_channels_and_knows_no_shift():
    torch.manual_seed(0)
    kept = torch.randn(2, 5, 8)
    expected = (kept - kept.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    torch.testing.assert_close(measure_spread(kept), expected)
    torch.testing.assert_close(measure_spread_drift(3 * kept + 7, kept), torch.full((2,), 2.0))


def test_blend_of_one_tensor_is_that_tensor():
    stale, fresh = torch.randn(3, 2), torch.randn(3, 2)
    assert blend(stale, fresh, [0.0] * 3) is stale
    assert blend(stale, fresh, [1.0]) is fresh
    counts = torch.ones(3, 2, dtype=torch.int64)
    assert blend(counts * 2, counts, [0.5]) is counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_samples_blend_by_their_own_weights(dtype):
    torch.manual_seed(0)
    stale, fresh = (torch.randn(4, 3, 2, dtype=dtype) for _ in range(2))
    stale[3, 0, 0], fresh[0, 0, 0] = math.nan, math.inf
    found = blend(stale, fresh, [0.0, 0.25, 0.75, 1.0])
    assert torch.equal(found[0], stale[0])
    assert torch.equal(found[3], fresh[3])
    torch.testing.assert_close(found[1], 0.75 * stale[1] + 0.25 * fresh[1])
    torch.testing.assert_close(found[2], 0.25 * stale[2] + 0.75 * fresh[2])
    assert found.dtype == dtype


def test_what_does_not_fit_is_refused():
    x = torch.zeros(2, 3)
    for call in (measure_drift, measure_spread_drift):
        with pytest.raises(InputError, match=r"\(2, 3\).*\(2, 4\)"):
            call(x, torch.zeros(2, 4))
    with pytest.raises(InputError, match="3 weights for 2 samples"):
        blend(x, x, [0.1, 0.2, 0.3])
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(PolicyError, match="within 0 and 1"):
            blend(x, x, [weight])
