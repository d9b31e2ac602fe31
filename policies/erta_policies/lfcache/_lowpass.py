"""Small latents for a trial forward, and the low frequencies of its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from erta_policies.shared import grid_dims

Down = Literal["area", "nearest"]
MOST_AXES = 3


def shrink_sizes(
    sizes: Sequence[int], factors: tuple[int, int, int] = (2, 4, 4), multiple: int = 2
) -> tuple[int, ...]:
    """Sizes of a grid divided by the factors for frames, height and width.

    Height and width are rounded down to a multiple, because networks take whole patches, and no
    axis gets smaller than that or larger than it was.

    Args:
        sizes: Sizes of the axes, width last.
        factors: For frames, height and width; the last ones are used where there are fewer axes.
        multiple: Height and width become multiples of it.

    Example:
        >>> shrink_sizes((21, 90, 160)), shrink_sizes((128, 128), multiple=8)
        ((10, 22, 40), (32, 32))
    """
    found = []
    for place, (size, factor) in enumerate(zip(reversed(sizes), reversed(factors), strict=False)):
        step = multiple if place < 2 else 1
        found.append(min(size, max(step, size // factor // step * step)))
    return tuple(reversed(found))


def shrink(x: Tensor, sizes: Sequence[int], channel_dim: int = 1, down: Down = "area") -> Tensor:
    """Latents on a smaller grid, `[B, C, ...]` or with the channels elsewhere.

    Args:
        x: Latents.
        sizes: Sizes of the smaller grid.
        channel_dim: Dimension of the channels.
        down: `"area"` for the mean over a cell, `"nearest"` for one place of it.

    Example:
        >>> shrink(torch.ones(1, 16, 4, 8, 8), (2, 2, 2)).shape
        torch.Size([1, 16, 2, 2, 2])
    """
    first = x.movedim(channel_dim, 1)
    if down == "nearest":
        small = functional.interpolate(first, tuple(sizes), mode="nearest")
    else:
        small = functional.interpolate(first, tuple(sizes), mode="area")
    return small.movedim(1, channel_dim)


def low_frequencies(x: Tensor, channel_dim: int = 1, part: float = 0.2) -> Tensor:
    """Fourier coefficients of the last two axes of the grid within a disc, `[B, ..., bins]`.

    The transform keeps norms (Parseval): the norm of a difference of coefficients is that of the
    difference of the low-passed tensors, so no inverse transform is needed.

    Args:
        x: A prediction, `[B, C, ..., H, W]` or with the channels elsewhere.
        channel_dim: Dimension of the channels.
        part: Radius of the disc as a part of the smaller of height and width, 1 bin at least.

    Example:
        >>> low_frequencies(torch.ones(1, 1, 10, 10)).shape
        torch.Size([1, 1, 13])
    """
    axes = grid_dims(x.shape, channel_dim)[-2:]
    first = x.float().movedim(axes, list(range(-len(axes), 0)))
    sizes = first.shape[-len(axes) :]
    spectrum = torch.fft.fftn(first, dim=tuple(range(-len(axes), 0)), norm="ortho")
    radius = max(1.0, part * min(sizes))
    # squared distance of every bin from frequency 0, in bins; rows of fftfreq broadcast over axes
    distance = torch.zeros(sizes, device=x.device)
    for axis, size in enumerate(sizes):
        place = torch.fft.fftfreq(size, d=1.0 / size, device=x.device)
        distance = (
            distance + place.reshape([-1 if d == axis else 1 for d in range(len(sizes))]) ** 2
        )
    inside = (distance <= radius**2).flatten().nonzero()[:, 0]
    kept: Tensor = spectrum.flatten(-len(axes)).index_select(-1, inside)
    return kept


def spectrum_norms(x: Tensor) -> Tensor:
    """L2 norm of each sample's coefficients, `[B]`."""
    found: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return found
