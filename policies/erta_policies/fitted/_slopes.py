"""How the end of a run moves with the weights, as far as runs have told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties that are tried, relative to the curvature along each weight."""
LEAST = 1e-30


@dataclass(slots=True, eq=False)
class Slopes:
    """The slopes of each sample at the end, by weight.

    They are right where they were measured. Away from there they are corrected, by the least change
    that makes them agree with what is known: where a changed run has ended (Broyden 1965), or the
    gradient of each sample's error (adjoint Broyden; Griewank and Walther 2002).

    Attributes:
        matrix: `[N, elements, weights]`.
    """

    matrix: Tensor

    @classmethod
    def of(cls, slopes: Sequence[Tensor]) -> Slopes:
        """From the slope of the samples for each weight, `[N, C, ...]`."""
        return cls(torch.stack(list(slopes), dim=-1).flatten(1, -2).double())

    def solve(self, apart: Tensor) -> list[Tensor]:
        """The Gauss-Newton changes of the weights, one for each damping.

        Args:
            apart: How far the samples are from where they should be, `[N, elements]`.
        """
        weight = 1.0 / apart.square().sum(dim=1).clamp(min=LEAST)
        square = torch.einsum("n,new,nev->wv", weight, self.matrix, self.matrix)
        right = torch.einsum("n,new,ne->w", weight, self.matrix, apart)
        least = 1e-12 * square.diagonal().max() + LEAST
        penalties = [damping * square.diagonal() + least for damping in DAMPINGS]
        return [-torch.linalg.solve(square + penalty.diag(), right) for penalty in penalties]

    def correct_for(self, change: Tensor, moved: Tensor) -> None:
        """Agree with a run.

        Args:
            change: Of its weights.
            moved: By how much it moved the samples, `[N, elements]`.
        """
        missed = moved - torch.einsum("new,w->ne", self.matrix, change)
        along = change / change.square().sum().clamp(min=LEAST)
        self.matrix += torch.einsum("ne,w->new", missed, along)

    def correct_along(self, apart: Tensor, gradient: Tensor) -> None:
        """Agree with a gradient.

        Args:
            apart: How far the samples are from where they should be, `[N, elements]`.
            gradient: Of half of each sample's squared error, `[N, weights]`.
        """
        missed = gradient - torch.einsum("ne,new->nw", apart, self.matrix)
        along = apart / apart.square().sum(dim=1, keepdim=True).clamp(min=LEAST)
        self.matrix += torch.einsum("ne,nw->new", along, missed)
