"""Straight lines `y ~ slope * x + offset` for each channel: fitted to sums, and applied.

ERTACache (arXiv 2508.21091) fits the error of a reused velocity so, CacheQuant (arXiv 2503.01323)
a feature on its stale version, and FastCache (arXiv 2505.20353) a block's output on its input. The
sums add up over samples and runs, so that profiles merge. One machinery for them is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from erta_framework.errors import ProfileError


@dataclass(frozen=True, slots=True)
class PairMoments:
    """Sums over pairs of numbers (x, y), one of each channel: all that least squares needs.

    Attributes:
        count: Pairs that were summed; it broadcasts against the sums.
        x: Sum of x, `[..., C]`, as are the others.
        xx: Sum of x^2.
        y: Sum of y.
        yy: Sum of y^2.
        xy: Sum of x y.

    Example:
        >>> PairMoments.of(torch.ones(2, 3, 4), torch.zeros(2, 3, 4), dim=1).x.tolist()
        [8.0, 8.0, 8.0]
    """

    count: Tensor
    x: Tensor
    xx: Tensor
    y: Tensor
    yy: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, dim: int) -> Self:
        """The sums over everything but the channels, in float64 where the device has it.

        Args:
            x: What is corrected, `[B, ...]`.
            y: What it should be, of the same shape.
            dim: Where the channels are, such as 1 of an image and -1 of tokens.

        Raises:
            ProfileError: The shapes differ.
        """
        if x.shape != y.shape:
            raise ProfileError(
                f"a channel affine pairs numbers of one shape, but got {tuple(x.shape)} and "
                f"{tuple(y.shape)}; calibrate at one resolution"
            )
        # products in the wide type: a variance from rounded squares would not vanish
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        x, y = (
            value.movedim(dim, 1).reshape(len(value), value.shape[dim], -1).to(wide)
            for value in (x, y)
        )
        count = x.new_tensor(x.shape[0] * x.shape[2])
        sums = (value.sum(dim=(0, 2)) for value in (x, x * x, y, y * y, x * y))
        return cls(count, *sums)

    def __add__(self, other: Self) -> Self:
        """The sums of both."""
        names = [each.name for each in fields(self)]
        return replace(self, **{n: getattr(self, n) + getattr(other, n) for n in names})

    def pool(self) -> Self:
        """The sums over all channels, as if they were one."""
        names = [each.name for each in fields(self) if each.name != "count"]
        sums = {name: getattr(self, name).sum(dim=-1, keepdim=True) for name in names}
        return replace(self, count=self.count * self.x.shape[-1], **sums)


@dataclass(frozen=True, slots=True)
class LineFit:
    """Least squares `y ~ slope * x + offset` for each channel, `[..., C]`.

    Attributes:
        slope: Of the line.
        offset: Of the line.
        mean_x: Average of x.
        mean_y: Average of y.
        r2: Share of the variance of y that the line explains.
        left: Root mean square of what it leaves.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 1, 8)
        >>> fit_line(PairMoments.of(x, 2 * x + 1, dim=1)).slope.tolist()
        [2.0]
    """

    slope: Tensor
    offset: Tensor
    mean_x: Tensor
    mean_y: Tensor
    r2: Tensor
    left: Tensor


def fit_line(
    moments: PairMoments, flat: float = 1.0, least: float | None = None, shrink: float = 0.0
) -> LineFit:
    """Least squares of y on x, from their sums.

    Where x hardly varies no slope can be told: the line then has the slope `flat` and goes through
    both means. Without this guard, which is ours, a channel that stands still gets slopes of 1e5.

    Args:
        moments: The sums.
        flat: The slope where there is none: 1 where y is a later x, 0 where it is an error of x.
        least: Variance up to which there is none; by default 1e-8 * max(1, mean_x^2).
        shrink: Pairs' worth of trust in a slope of `flat`: with n pairs a slope is moved to
            `flat + (slope - flat) * n / (n + shrink)`, which is ours.

    Example:
        >>> still = torch.full((1, 1, 8), 3.0)
        >>> line = fit_line(PairMoments.of(still, still + 1, dim=1))
        >>> line.slope.tolist(), line.offset.tolist()
        ([1.0], [1.0])
    """
    count = moments.count.clamp(min=1)
    mean_x, mean_y = moments.x / count, moments.y / count
    variance = moments.xx / count - mean_x**2
    variance_y = moments.yy / count - mean_y**2
    covariance = moments.xy / count - mean_x * mean_y
    floor = 1e-8 * (mean_x**2).clamp(min=1) if least is None else torch.full_like(variance, least)
    slope = torch.where(variance > floor, covariance / variance.clamp(min=floor), flat)
    if shrink:
        slope = flat + (slope - flat) * (count / (count + shrink))
    r2 = torch.where(variance_y > 1e-12, slope * covariance / variance_y.clamp(min=1e-12), 0.0)
    left = (variance_y - slope * covariance).clamp(min=0).sqrt()
    return LineFit(slope, mean_y - slope * mean_x, mean_x, mean_y, r2, left)


def apply_line(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """`slope * x + offset`, in float32 at least, in the type of `x`.

    Args:
        x: Any tensor.
        slope: Broadcasts against it.
        offset: The same.
    """
    # a cast that changes nothing still costs a microsecond
    if x.dtype is torch.float32 or x.dtype is torch.float64:
        return slope * x + offset
    return (slope * x.float() + offset).to(x.dtype)


def spread_channels(values: Tensor, ndim: int, dim: int) -> Tensor:
    """Numbers a channel `[..., C]` in a form that broadcasts against tensors of `ndim` dimensions.

    Example:
        >>> spread_channels(torch.zeros(7, 3), ndim=4, dim=1).shape
        torch.Size([7, 1, 3, 1, 1])
    """
    line = [1] * ndim
    line[dim] = values.shape[-1]
    return values.reshape(*values.shape[:-1], *line)


def find_channels(feature: Tensor) -> int:
    """Where the channels of a feature are: last in tokens `[B, N, C]`, else behind the batch.

    Example:
        >>> find_channels(torch.zeros(2, 16, 8)), find_channels(torch.zeros(2, 8, 4, 4))
        (-1, 1)
    """
    return -1 if feature.ndim == 3 else 1


class ChannelAffine:
    """A line for each channel, applied to whole tensors: what `then` of a reuse takes.

    Args:
        slope: `[C]`, or `[R, C]` with a line for each sample as well.
        offset: Of the same shape.
        dim: Where the channels of the tensors are; by default as `find_channels` says.
        who: Names its owner in errors.

    Raises:
        ProfileError: A tensor has another number of channels or samples, at the call.

    Example:
        >>> double = ChannelAffine(torch.full((3,), 2.0), torch.zeros(3), dim=1, who="at")
        >>> double(torch.ones(1, 3, 2))[0, 0].tolist()
        [2.0, 2.0]
    """

    def __init__(
        self, slope: Tensor, offset: Tensor, dim: int | None = None, who: str = "a correction"
    ) -> None:
        self.slope, self.offset, self.dim, self.who = slope.float(), offset.float(), dim, who
        self._placed: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """`slope * x + offset`."""
        # what a line is placed for: channels are found by the number of dimensions
        key = (x.device, x.ndim, x.shape[0])
        if key not in self._placed:
            self._placed[key] = self._place(x)
        return apply_line(x, *self._placed[key])

    def _place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dim = find_channels(x) if self.dim is None else self.dim
        *rows, channels = self.slope.shape
        if x.shape[dim] != channels or (rows and rows[0] != x.shape[0]):
            lines = f"{channels} channels" + (f" of {rows[0]} samples" if rows else "")
            raise ProfileError(
                f"{self.who} has lines for {lines}, but the reused tensor is {tuple(x.shape)} with "
                f"{x.shape[dim]}; calibrate for this network and place"
            )
        slope, offset = (
            spread_channels(values.to(x.device), x.ndim, dim)
            for values in (self.slope, self.offset)
        )
        # a line for each sample: in place of the batch
        return (slope.squeeze(1), offset.squeeze(1)) if rows else (slope, offset)
