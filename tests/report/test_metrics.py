from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from erta_framework.errors import InputError
from erta_framework.metrics import mean_magnitude, psnr, relative_l1, ssim
from erta_framework.optional_dependencies import MissingExtraError


def video(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_by_hand():
    a = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    b = torch.tensor([[0.5, 0.0], [-1.0, 1.0]])
    # mean squared errors 0.125 and 4, range 2
    expected = [10 * math.log10(4 / 0.125), 0.0]
    assert psnr(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    assert psnr(a, b, data_range=1.0)[1].item() == pytest.approx(-10 * math.log10(4))


def test_psnr_of_8_bit_images_does_not_wrap_around():
    a = torch.tensor([[0, 255, 10]], dtype=torch.uint8)
    b = torch.tensor([[255, 0, 13]], dtype=torch.uint8)
    assert (a - b).tolist() == [[1, 255, 253]]  # what taking the difference in uint8 gives
    mean_square = (255.0**2 + 255.0**2 + 3.0**2) / 3
    expected = 10 * math.log10(255.0**2 / mean_square)
    assert psnr(a, b, data_range=255).item() == pytest.approx(expected, abs=1e-12)


def test_psnr_is_computed_in_float64():
    a = torch.full((1, 1000), 1.0)
    b = (a.double() + 1e-9).reshape(1, -1)
    assert psnr(a, b).item() == pytest.approx(10 * math.log10(4 / 1e-18), abs=1e-3)
    assert psnr(a.bfloat16(), a.bfloat16()).dtype == torch.float64


def test_equal_samples_give_infinity_and_one():
    a = video(0)
    assert psnr(a, a.clone()).tolist() == [math.inf, math.inf]
    assert ssim(a, a.clone()).tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    assert relative_l1(a, a.clone()).tolist() == [0.0, 0.0]


def test_ssim_of_a_video_is_the_mean_over_its_frames():
    a, b = video(0), video(1)
    frames = torch.stack([ssim(a[:, :, f], b[:, :, f]) for f in range(4)])
    assert torch.allclose(ssim(a, b), frames.mean(dim=0), rtol=0, atol=1e-12)
    assert (ssim(a, b) < 0.5).all()


def test_ssim_of_constant_images_by_hand():
    a, b = torch.full((1, 1, 11, 11), 0.5), torch.full((1, 1, 11, 11), 0.25)
    c1 = (0.01 * 2) ** 2  # without variance only the luminance term is left
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-9)


def test_each_sample_counts_alone():
    a, b = video(0), video(1)
    for metric in (psnr, ssim, relative_l1):
        alone = torch.cat([metric(a[k : k + 1], b[k : k + 1]) for k in range(2)])
        assert torch.allclose(metric(a, b), alone, rtol=0, atol=1e-12)


def test_relative_l1():
    a, b = torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([[2.0, -2.0], [0.0, 0.0]])
    assert relative_l1(a, b).tolist() == [0.5, 0.0]
    assert relative_l1(b[:1], torch.zeros(1, 2)).tolist() == [math.inf]


def test_relative_l1_is_zero_only_where_nothing_changed():
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e-20, 0.0], [math.nan, 0.0]])
    b = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2e-20, 0.0], [1.0, 1.0]])
    found = relative_l1(a, b).tolist()
    assert found[:2] == [0.0, math.inf]
    assert found[2] == pytest.approx(0.5)  # no constant decides what counts as zero
    assert math.isnan(found[3])
    assert not found[3] < math.inf  # below no threshold


def test_relative_l1_of_a_batch_is_one_value():
    a, b = torch.tensor([[2.0, 2.0], [0.0, 4.0]]), torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    assert relative_l1(a, b, per_sample=False).tolist() == [0.25]
    assert mean_magnitude(a, per_sample=False).tolist() == [2.0]


def test_relative_l1_of_8_bit_images_does_not_wrap_around():
    a, b = (torch.tensor([[value]], dtype=torch.uint8) for value in (1, 2))
    assert relative_l1(a, b).tolist() == [0.5]


def test_relative_l1_reads_nothing_back():
    """A tensor on the meta device has no values: reading one would fail."""
    a, b = torch.empty(2, 3, 4, device="meta"), torch.empty(2, 3, 4, device="meta")
    for per_sample, size in ((True, 2), (False, 1)):
        found = relative_l1(a, b, per_sample)
        assert (found.device.type, found.shape, found.dtype) == ("meta", (size,), torch.float32)
    assert relative_l1(a.double(), b.double()).dtype == torch.float64


@pytest.mark.parametrize("metric", [psnr, ssim, relative_l1])
def test_other_shapes_are_refused(metric):
    with pytest.raises(InputError, match=r"\(2, 3, 4, 16, 16\) and reference \(1, 3, 4, 16, 16\)"):
        metric(video(0), video(0)[:1])


def test_8_bit_with_the_range_of_floats_is_refused():
    a = torch.from_numpy(np.zeros((1, 4), dtype=np.uint8))
    with pytest.raises(InputError, match="data_range=255"):
        psnr(a, a)


def test_ssim_refuses_what_has_no_window():
    with pytest.raises(InputError, match="at least 11 x 11 pixels, got 16 x 8"):
        ssim(video(0)[..., :8], video(0)[..., :8])
    with pytest.raises(InputError, match="images"):
        ssim(torch.zeros(2, 5), torch.zeros(2, 5))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("erta_framework.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "erta-framework\[report\]"'):
        ssim(video(0), video(0))
