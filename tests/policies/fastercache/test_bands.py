"""The difference of two branches as bands: the algebra that lets skip steps do without FFTs."""

from __future__ import annotations

import pytest
import torch

from erta_policies.fastercache import BranchDelta, keep_low

SHAPES = [(2, 3, 10, 16), (1, 2, 3, 15, 11), (2, 1, 6, 6)]


def draw(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def split_as_released(x):
    """Spectra of both bands as the released code makes them: shifted, and a disc on a grid."""
    shifted = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    height, width = x.shape[-2:]
    radius = min(height, width) // 5
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = (columns - width // 2) ** 2 + (rows - height // 2) ** 2 <= radius**2
    return shifted * mask, shifted * ~mask


def run_as_released(pairs, growths):
    """Full step on the first pair; skip steps on the others, with the difference grown in place."""
    (cond, uncond), *rest = pairs
    low_c, high_c = split_as_released(cond.float())
    low_u, high_u = split_as_released(uncond.float())
    low, high = low_u - low_c, high_u - high_c
    found = []
    for (c, _), (grow_low, grow_high) in zip(rest, growths, strict=True):
        low, high = low * grow_low, high * grow_high
        low_c, high_c = split_as_released(c.float())
        spectrum = low_c + high_c + low + high
        found.append(torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "growths", [[(1.0, 1.0)] * 4, [(1.1, 1.0)] * 4, [(1.15, 1.0), (1.15, 1.2), (1.0, 1.2)]]
)
def test_skip_steps_are_the_released_ones_without_a_transform(shape, growths, monkeypatch):
    pairs = [
        (draw(shape, k, torch.float32), draw(shape, 10 + k, torch.float32))
        for k in range(len(growths) + 1)
    ]
    expected = run_as_released(pairs, growths)
    delta = BranchDelta.of(0, *pairs[0], split=True)
    monkeypatch.setattr(torch.fft, "fft2", None)  # no transform from here on
    monkeypatch.setattr(torch.fft, "ifft2", None)
    for (cond, _), growth, oracle in zip(pairs[1:], growths, expected, strict=True):
        delta.grow(*growth)
        torch.testing.assert_close(delta.add_to(cond), oracle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_low_frequencies_are_those_of_the_disc(shape):
    x = draw(shape, 3, torch.float32)
    low, _ = split_as_released(x)
    oracle = torch.fft.ifft2(torch.fft.ifftshift(low, dim=(-2, -1)))
    assert oracle.imag.abs().max() < 1e-6
    torch.testing.assert_close(keep_low(x), oracle.real, rtol=1e-5, atol=1e-6)


def test_of_a_small_side_the_mean_is_low():
    x = draw((1, 2, 4, 30), 1, torch.float32)
    torch.testing.assert_close(keep_low(x), x.mean((-2, -1), keepdim=True).expand_as(x))


def test_bands_grow_geometrically():
    shape = (1, 2, 20, 20)
    cond, uncond = draw(shape, 1, torch.float32), draw(shape, 2, torch.float32)
    delta = BranchDelta.of(0, cond, uncond, split=True)
    whole = uncond - cond
    low = keep_low(whole)
    for k in range(1, 5):
        delta.grow(1.1, 1.3)
        made = delta.add_to(cond)
        torch.testing.assert_close(made, cond + 1.1**k * low + 1.3**k * (whole - low))


def test_without_growth_the_direction_of_guidance_is_kept():
    shape, scale = (2, 3, 8, 8), 7.5
    before = draw(shape, 1, torch.float32), draw(shape, 2, torch.float32)
    cond = draw(shape, 3, torch.float32)
    made = BranchDelta.of(0, *before, split=False).add_to(cond)
    guided = made + scale * (cond - made)
    torch.testing.assert_close(guided, cond - (scale - 1) * (before[1] - before[0]))


def test_a_difference_whose_bands_grow_alike_is_not_split():
    cond, uncond = (draw((1, 1, 10, 10), k, torch.float32) for k in (1, 2))
    apart = BranchDelta.of(0, cond, uncond, split=True)
    whole = BranchDelta.of(0, cond, uncond, split=False)
    assert whole.low is None
    for _ in range(3):
        apart.grow(1.1, 1.1)
        whole.grow(1.1, 1.1)
    assert torch.equal(apart.add_to(cond), whole.add_to(cond))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    cond, uncond = (draw((1, 2, 10, 10), k).to(dtype) for k in (1, 2))
    delta = BranchDelta.of(0, cond, uncond, split=True)
    assert delta.whole.dtype is delta.low.dtype is torch.float32
    delta.grow(1.1, 1.0)
    made = delta.add_to(cond)
    assert made.dtype is dtype
    exact = cond.float() + 1.1 * keep_low(delta.whole) + delta.whole - keep_low(delta.whole)
    torch.testing.assert_close(made, exact.to(dtype))


def test_some_samples_take_their_own_differences():
    cond, uncond = (draw((3, 2, 10, 10), k, torch.float32) for k in (1, 2))
    delta = BranchDelta.of(0, cond, uncond, split=True)
    delta.grow(1.2, 1.0)
    rows = torch.tensor([2, 0])
    assert torch.equal(delta.add_to(cond[rows], rows), delta.add_to(cond)[rows])
