"""What stands in for a block that does not run: its last residual, and two corrections of it.

With the input H' and the residual R = Block(H') - H' of the step at which a block last ran, and
its input H now, a surrogate gives

* `residual`: H + R, what block caches reuse;
* `affine`: H + a R + b, a line for each channel;
* `ridge`: H + R + (H - H') A, where A predicts how the residual changes from how the input did.

A and the lines are least squares on pairs of steps of uncached runs, from sums that add up.
FastCache (arXiv 2505.20353) replaces blocks by a linear map whose fit was not published. The forms
on top of the residual, and the fit, are ours: A = 0, or a = 1 and b = 0, is residual reuse.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from erta_framework.errors import ProfileError
from erta_policies.shared._channel_affine import ChannelAffine, LineFit
from erta_policies.shared._surrogate_fit import LinearFit

SurrogateName = Literal["residual", "affine", "ridge"]
SURROGATES: tuple[SurrogateName, ...] = ("residual", "affine", "ridge")


class Surrogate(Protocol):
    """Stands in for a block, on one of its streams."""

    @property
    def flops(self) -> int:
        """Operations for each token, beside additions."""
        ...

    def __call__(self, now: Tensor, entered: Tensor, residual: Tensor) -> Tensor:
        """What the block would return, about.

        Args:
            now: The input now, `[B, N, C]`.
            entered: The input with which the block last ran.
            residual: What it added to that.
        """
        ...


class ResidualReuse:
    """`H + R`: the block adds what it added last.

    Example:
        >>> ResidualReuse()(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
        tensor([[[2., 2.]]])
    """

    flops = 0

    def __call__(self, now: Tensor, entered: Tensor, residual: Tensor) -> Tensor:
        return now + residual


class AffineResidual:
    """`H + a R + b`: the block adds what it added last, with a line for each channel.

    Args:
        line: The line.
    """

    def __init__(self, line: ChannelAffine) -> None:
        self.line = line

    @property
    def flops(self) -> int:
        """A product and a sum for each channel."""
        return 2 * len(self.line.slope)

    def __call__(self, now: Tensor, entered: Tensor, residual: Tensor) -> Tensor:
        return now + self.line(residual)


class RidgeResidual:
    """`H + R + (H - H') A`: what the block adds changes linearly with its input.

    The product is taken in the type of the stream; it is a correction, smaller than the residual.
    Where A is 0 this is `ResidualReuse`, to the bit.

    Args:
        fit: A, or two factors of it.

    Example:
        >>> ridge = RidgeResidual(LinearFit((torch.zeros(2, 2),)))
        >>> ridge(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
        tensor([[[2., 2.]]])
    """

    def __init__(self, fit: LinearFit) -> None:
        self.fit = fit
        self._placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    @property
    def flops(self) -> int:
        """Those of the product with A."""
        return self.fit.flops

    def __call__(self, now: Tensor, entered: Tensor, residual: Tensor) -> Tensor:
        stale, change = now + residual, now - entered
        for factor in self._place(now):
            change = change @ factor
        return stale + change

    def _place(self, like: Tensor) -> tuple[Tensor, ...]:
        key = (like.device, like.dtype)
        if key not in self._placed:
            width = self.fit.factors[0].shape[0]
            if like.shape[-1] != width:
                raise ProfileError(
                    f"a ridge surrogate is fitted to {width} channels, but the block is given "
                    f"{tuple(like.shape)}; calibrate for this network"
                )
            self._placed[key] = tuple(
                factor.to(like.device, like.dtype) for factor in self.fit.factors
            )
        return self._placed[key]


def make_affine(fit: LineFit, who: str) -> AffineResidual:
    """The surrogate of lines that were fitted to stale and fresh residuals."""
    return AffineResidual(ChannelAffine(fit.slope, fit.offset, dim=-1, who=who))
