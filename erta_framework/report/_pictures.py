"""Samples as picture files: GIF for a video, PNG for an image."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra


def to_frames(sample: Tensor, scale: int = 1) -> Tensor:
    """One sample as 8-bit frames `[F, H, W, 3]`.

    Args:
        sample: A video `[C, F, H, W]` or an image `[C, H, W]` in [-1, 1] with 1 or 3 channels;
            values outside are clipped.
        scale: Side of the block that each pixel becomes.

    Raises:
        InputError: Another number of dimensions or channels, or NaN or infinite values.

    Example:
        >>> to_frames(torch.zeros(3, 5, 16, 16)).shape
        torch.Size([5, 16, 16, 3])
    """
    if sample.ndim not in (3, 4) or sample.shape[0] not in (1, 3):
        raise InputError(
            f"a picture is [C, H, W] or [C, F, H, W] with 1 or 3 channels, got "
            f"{tuple(sample.shape)}"
        )
    if not bool(sample.isfinite().all()):
        raise InputError("a sample with NaN or infinite values cannot be drawn")
    video = sample if sample.ndim == 4 else sample.unsqueeze(1)
    video = video.detach().to("cpu", torch.float32).clamp(-1, 1)
    levels = ((video + 1) * 127.5).round().to(torch.uint8)
    frames = levels.permute(1, 2, 3, 0).expand(-1, -1, -1, 3)
    return frames.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2).contiguous()


def write_gif(sample: Tensor, path: str | Path, *, scale: int = 8, fps: float = 6.0) -> Path:
    """Write one sample as an animated GIF that loops.

    Args:
        sample: A video `[C, F, H, W]` in [-1, 1]; an image gives a single frame.
        path: Where to; `.gif` is appended if it does not end so.
        scale: Side of the block that each pixel becomes.
        fps: Frames a second.

    Returns:
        The path that was written.

    Raises:
        InputError: The sample is no picture.
        MissingExtraError: Pillow is not installed.

    Example:
        >>> write_gif(samples[0], "red-circle.gif")  # doctest: +SKIP
    """
    return save_gif(to_frames(sample, scale), path, fps)


def write_png(sample: Tensor, path: str | Path, *, scale: int = 1) -> Path:
    """Write an image as PNG.

    Args:
        sample: An image `[C, H, W]` in [-1, 1].
        path: Where to; `.png` is appended if it does not end so.
        scale: Side of the block that each pixel becomes.

    Returns:
        The path that was written.

    Raises:
        InputError: The sample is no picture, or a video.
        MissingExtraError: Pillow is not installed.
    """
    require_extra("PIL", extra="report", wanted_by="write_png")
    from PIL import Image

    if sample.ndim != 3:
        raise InputError(
            f"a PNG shows one image [C, H, W], got {tuple(sample.shape)}; use write_gif for videos"
        )
    (frame,) = to_frames(sample, scale)
    target = _prepare_path(path, ".png")
    Image.fromarray(frame.numpy()).save(target)
    return target


def save_gif(frames: Tensor, path: str | Path, fps: float = 6.0) -> Path:
    """Write 8-bit frames `[F, H, W, 3]` as a looping GIF.

    Every frame is kept, even if it equals the one before, and has a palette of its own.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    require_extra("PIL", extra="report", wanted_by="writing a GIF")
    from PIL import Image

    pictures = (Image.fromarray(frame.numpy()) for frame in frames)
    first, *rest = (p.quantize(colors=255, dither=Image.Dither.NONE) for p in pictures)
    target = _prepare_path(path, ".gif")
    first.save(
        target,
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
        disposal=1,
    )
    return target


def _prepare_path(path: str | Path, suffix: str) -> Path:
    target = Path(path)
    if target.suffix != suffix:
        target = target.with_name(target.name + suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
