"""Fidelity of samples against reference samples, one value a sample, always computed in float64.

`a` is what is judged and `b` the reference; both are `[B, ...]`, such as videos
`[B, C, F, H, W]` or images `[B, C, H, W]`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra

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
    a, b = _checked(a, b, data_range)
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

    a, b = _checked(a, b, data_range)
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


def relative_l1(a: Tensor, b: Tensor) -> Tensor:
    """`||a - b||_1 / ||b||_1` of each sample, `[B]`; 0 where both are zero.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> relative_l1(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]])).item()
        0.5
    """
    a, b = _checked(a, b, data_range=None)
    difference = (a - b).abs().flatten(1).sum(dim=1)
    size = b.abs().flatten(1).sum(dim=1)
    return torch.where(difference == 0, difference, difference / size)


def _checked(a: Tensor, b: Tensor, data_range: float | None) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim < 2:
        raise InputError(
            f"samples {tuple(a.shape)} and reference {tuple(b.shape)} must have one shape [B, ...]"
        )
    integers = not (a.is_floating_point() and b.is_floating_point())
    if data_range is not None and data_range <= 2.0 and integers:
        # 0..255 measured against a range of 2 would be 42 dB off without a word
        raise InputError(
            f"samples of {a.dtype} / {b.dtype} with data_range={data_range}; "
            "8-bit images have data_range=255"
        )
    return a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
