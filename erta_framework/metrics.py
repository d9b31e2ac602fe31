"""How far samples are from reference samples, one value a sample.

`a` is what is judged and `b` the reference; both are `[B, ...]`, such as videos
`[B, C, F, H, W]` or images `[B, C, H, W]`. `psnr` and `ssim` judge results: they compute in
float64 on the host. `relative_l1` and `mean_magnitude` are also the signals that caching policies
decide by: they stay on the tensors' device and read nothing back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra

__all__ = ["mean_magnitude", "psnr", "relative_l1", "ssim"]

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window in pixels; smaller frames have no SSIM."""


def psnr(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, `10 log10(data_range^2 / mean((a - b)^2))`, `[B]`.

    Differences are taken in float64, so 8-bit images cannot wrap around. Equal samples give
    infinity.

    Args:
        a: Samples `[B, ...]`.
        b: Reference samples of the same shape.
        data_range: Largest minus smallest possible value: 2 for [-1, 1], 255 for 8-bit images.

    Raises:
        InputError: The shapes differ, or integers come with a data range of 2 or less.

    Example:
        >>> psnr(torch.zeros(1, 4), torch.full((1, 4), 0.25), data_range=2.5).item()
        20.0
    """
    a, b = _prepare(a, b, data_range)
    error = (a - b).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / error)


def ssim(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity, averaged over the frames of each sample, `[B]`, at most 1.

    The usual Gaussian window (11 pixels, sigma 1.5) through torchmetrics. Each frame of a video
    is one image.

    Args:
        a: Images `[B, C, H, W]` or videos `[B, C, F, H, W]`.
        b: Reference samples of the same shape.
        data_range: Largest minus smallest possible value.

    Raises:
        InputError: The shapes differ, are neither images nor videos, or a frame is smaller than
            the window.
        MissingExtraError: torchmetrics is not installed.
    """
    require_extra("torchmetrics", extra="report", wanted_by="ssim")
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = _prepare(a, b, data_range)
    if a.ndim not in (4, 5):
        raise InputError(
            f"ssim takes images [B, C, H, W] or videos [B, C, F, H, W], got {tuple(a.shape)}"
        )
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise InputError(
            f"ssim needs frames of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got "
            f"{a.shape[-2]} x {a.shape[-1]}; use psnr"
        )
    batch = a.shape[0]
    if a.ndim == 5:
        a, b = (x.transpose(1, 2).flatten(0, 1) for x in (a, b))
    values = structural_similarity_index_measure(a, b, data_range=data_range, reduction="none")
    frames: Tensor = torch.as_tensor(values).reshape(batch, -1)
    return frames.mean(dim=1)


def relative_l1(a: Tensor, b: Tensor, per_sample: bool = True) -> Tensor:
    """Relative L1 change from `b` to `a`, `mean |a - b| / mean |b|`, `[B]`.

    Two equal samples give 0, even if both are zero; a change from a zero `b` gives infinity. So
    the value is 0 exactly where nothing changed, and no constant decides what counts as zero: the
    result does not depend on the scale of the tensors. A caching rule that compares it with a
    threshold reuses where nothing changed and computes where there is nothing to compare with. NaN
    stays NaN, which is below no threshold.

    The difference is taken in the tensors' own precision and averaged in float32, or in float64 if
    they are float64. Nothing is read back to the host.

    Args:
        a: Samples `[B, ...]`.
        b: Reference samples of the same shape.
        per_sample: Whether every sample has a value of its own; otherwise the whole batch has one,
            `[1]`.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> relative_l1(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]]))
        tensor([0.5000])
        >>> relative_l1(torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1))
        tensor([0., inf])
    """
    _require_one_shape(a, b, dims=2 if per_sample else 1)
    if not (a.is_floating_point() and b.is_floating_point()):
        a, b = a.double(), b.double()  # unsigned integers would wrap around
    change = mean_magnitude(a - b, per_sample)
    return torch.where(change == 0, 0.0, change / mean_magnitude(b, per_sample))


def mean_magnitude(values: Tensor, per_sample: bool = True) -> Tensor:
    """Mean magnitude of each sample, `[B]`; with `per_sample=False` of the whole batch, `[1]`.

    Averaged in float32, or in float64 if `values` are float64.

    Example:
        >>> mean_magnitude(torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
        tensor([2., 0.])
    """
    magnitude = values.abs()
    if magnitude.dtype != torch.float64:
        magnitude = magnitude.float()
    return magnitude.flatten(1).mean(1) if per_sample else magnitude.mean().reshape(1)


def _prepare(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Both in float64 on the host, after the checks that every fidelity needs."""
    _require_one_shape(a, b, dims=2)
    integers = not (a.is_floating_point() and b.is_floating_point())
    if data_range <= 2.0 and integers:
        # 0..255 measured against a range of 2 would silently be 42 dB off
        raise InputError(
            f"samples of {a.dtype} / {b.dtype} with data_range={data_range}; "
            "8-bit images have data_range=255"
        )
    return a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)


def _require_one_shape(a: Tensor, b: Tensor, dims: int) -> None:
    if a.shape != b.shape or a.ndim < dims:
        raise InputError(
            f"samples {tuple(a.shape)} and reference {tuple(b.shape)} must have one shape [B, ...]"
        )
