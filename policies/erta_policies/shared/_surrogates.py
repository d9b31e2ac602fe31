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

from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from erta_framework.errors import PolicyError, ProfileError
from erta_policies.shared._channel_affine import ChannelAffine, LineFit
from erta_policies.shared._drift import to_sums

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


# ------------------------------------------------------------------------------- the fit
@dataclass(frozen=True, slots=True)
class ChangeMoments:
    """Sums over pairs of steps of how an input moved and how the residual changed.

    Attributes:
        gram: Sum of `dH' dH` over tokens, `[..., C, C]`.
        cross: Sum of `dH' dR`, `[..., C, C]`.

    Example:
        >>> moved = torch.eye(2).unsqueeze(0)
        >>> moments = ChangeMoments.of(moved, 3 * moved)
        >>> (moments + moments).cross.tolist()
        [[6.0, 0.0], [0.0, 6.0]]
    """

    gram: Tensor
    cross: Tensor

    @classmethod
    def of(cls, moved: Tensor, changed: Tensor) -> Self:
        """The sums of one pair of steps, in float32 at least.

        Args:
            moved: How the input moved, dH, `[B, N, C]`.
            changed: How the residual changed, dR, of the same shape.

        Raises:
            ProfileError: The shapes differ.
        """
        if moved.shape != changed.shape:
            raise ProfileError(
                f"a ridge surrogate pairs changes of one shape, but an input of "
                f"{tuple(moved.shape)} has a residual of {tuple(changed.shape)}; select blocks"
            )
        rows, targets = (to_sums(each).flatten(0, -2) for each in (moved, changed))
        return cls(rows.mT @ rows, rows.mT @ targets)

    def __add__(self, other: Self) -> Self:
        """The sums of both."""
        return type(self)(self.gram + other.gram, self.cross + other.cross)

    @property
    def dimensions(self) -> float:
        """How many directions the input moves in: `(sum e)^2 / sum e^2` of the eigenvalues e."""
        squares = float(self.gram.square().sum())
        return float(self.gram.trace()) ** 2 / squares if squares else 1.0


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A linear map, as one matrix `[C, C]` or as two factors `[C, r]` and `[r, C]`.

    Attributes:
        factors: They are applied one after the other.
    """

    factors: tuple[Tensor, ...]

    @property
    def matrix(self) -> Tensor:
        """The map as one matrix."""
        first, *rest = self.factors
        return first @ rest[0] if rest else first

    @property
    def flops(self) -> int:
        """Operations for each token, two for each number of the factors."""
        return 2 * sum(factor.numel() for factor in self.factors)


def fit_ridge(moments: ChangeMoments, ridge: float, rank: int | None = None) -> LinearFit:
    """Least squares of dR on dH with a penalty: `A = (dH'dH + l I)^-1 dH'dR`.

    Of all maps of a rank, the best one is `A V V'` with the leading eigenvectors V of
    `A' (dH'dH + l I) A`: reduced-rank regression.

    Args:
        moments: Sums `[C, C]`.
        ridge: The penalty l, relative to the mean square of a channel.
        rank: Largest rank; None for no limit.

    Returns:
        Float64. The map is 0 where nothing moved.

    Raises:
        PolicyError: The penalty is not above 0, or the rank is below 1.
        ArithmeticError: The sums overflow.

    Example:
        >>> moved = torch.eye(2, dtype=torch.float64).unsqueeze(0)
        >>> fit_ridge(ChangeMoments.of(moved, 2 * moved), ridge=1e-12).matrix.round(decimals=6)
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """
    check_ridge(ridge, rank)
    gram, cross = moments.gram.double(), moments.cross.double()
    width = len(gram)
    scale = float(gram.trace()) / width
    if scale == 0.0:
        return LinearFit((torch.zeros_like(cross),))
    square = gram + ridge * scale * torch.eye(width, dtype=gram.dtype, device=gram.device)
    full: Tensor = torch.linalg.solve(square, cross)
    if not bool(full.isfinite().all()):
        raise ArithmeticError("the ridge fit is not finite")
    if rank is None or 2 * rank >= width:  # two factors would not be smaller
        return LinearFit((full,))
    explained = full.mT @ square @ full
    _, vectors = torch.linalg.eigh((explained + explained.mT) / 2)
    leading = vectors[:, -rank:]
    return LinearFit((full @ leading, leading.mT.contiguous()))


def check_ridge(ridge: float, rank: int | None) -> None:
    """Refuse a penalty or a rank that is none.

    Raises:
        PolicyError: Names it.
    """
    if not ridge > 0.0:
        raise PolicyError(f"ridge is {ridge}; a penalty must be above 0, such as 0.001")
    if rank is not None and rank < 1:
        raise PolicyError(f"rank is {rank}; it must be at least 1, or None for no limit")


def make_affine(fit: LineFit, who: str) -> AffineResidual:
    """The surrogate of lines that were fitted to stale and fresh residuals."""
    return AffineResidual(ChannelAffine(fit.slope, fit.offset, dim=-1, who=who))
