"""Low frequencies of latents, and the difference of two branches as two bands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def keep_low(x: Tensor) -> Tensor:
    """The low frequencies of the last two dimensions, `[..., H, W]`, in float32.

    Those within a disc of radius `min(H, W) // 5` around frequency 0; of a side under 5, the mean.

    Example:
        >>> keep_low(torch.ones(1, 1, 10, 10)).allclose(torch.ones(1, 1, 10, 10))
        True
    """
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, d=1.0 / height, device=x.device)
    columns = torch.fft.fftfreq(width, d=1.0 / width, device=x.device)
    # half a bin of margin: the frequencies are whole numbers up to rounding
    inside = rows[:, None] ** 2 + columns**2 <= (min(height, width) // 5) ** 2 + 0.5
    spectrum = torch.fft.fft2(x.float(), dim=(-2, -1)) * inside
    low: Tensor = torch.fft.ifft2(spectrum, dim=(-2, -1)).real
    return low


@dataclass(slots=True)
class BranchDelta:
    """The difference of two branches at one step, and how much its bands have grown since.

    The transform is linear, so that the bands are added in the domain of the latents: a step
    without the branch makes no transform. The difference is whole where both bands grow alike.

    Attributes:
        index: The step.
        whole: `uncond - cond`, `[B, C, ..., H, W]`, in float32.
        low: Its low frequencies; None where they are not needed apart.
        low_weight: What they are multiplied by.
        high_weight: What the rest is multiplied by.
    """

    index: int
    whole: Tensor
    low: Tensor | None = None
    low_weight: float = 1.0
    high_weight: float = 1.0

    @classmethod
    def of(cls, index: int, cond: Tensor, uncond: Tensor, split: bool) -> BranchDelta:
        """The difference of the branches at a step, with its low frequencies apart or not."""
        whole = uncond.float() - cond.float()
        return cls(index, whole, keep_low(whole) if split else None)

    def grow(self, low: float, high: float) -> None:
        """Multiply the bands once more."""
        self.low_weight *= low
        self.high_weight *= high

    def add_to(self, cond: Tensor, rows: Tensor | None = None) -> Tensor:
        """The other branch, made from this one: `c + a_L d_L + a_H d_H`.

        Args:
            cond: What was computed, `[B, C, ...]`, or `[R, C, ...]` of some samples.
            rows: Places of these samples among those of the difference; None for all.
        """
        whole, low = self.whole, self.low
        if rows is not None:
            whole = whole.index_select(0, rows)
            low = None if low is None else low.index_select(0, rows)
        made = torch.add(cond.float(), whole, alpha=self.high_weight)
        if low is not None and self.low_weight != self.high_weight:
            made.add_(low, alpha=self.low_weight - self.high_weight)
        return made.to(cond.dtype)
