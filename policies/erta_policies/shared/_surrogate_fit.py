"""The ridge fit of surrogates: how a residual changes with its input, from sums that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from erta_framework.errors import PolicyError, ProfileError
from erta_policies.shared._drift import to_sums


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
