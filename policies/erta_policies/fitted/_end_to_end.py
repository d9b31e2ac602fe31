"""End-to-end refinement: fitted weights moved so that the *end* of the run comes nearer.

The fit goes step by step, and each step does what is best for itself. What counts is where the run
ends. So the weights are moved by Gauss-Newton steps on the error at the end, with the derivatives
from runs in which one weight is moved a little. No gradient of the network is needed.

Only computed latents matter: between two computed steps the latents move by a weighted sum of the
cached velocities and of themselves, however many steps that takes. So one change of each weight
serves all steps from a computed one to the next, which is called an edge here.

What is minimised is the mean of the *logarithm* of each sample's error, so that no sample outweighs
the others: a Gauss-Newton step on squares, each sample's weighed by the reciprocal of its error.
Some samples are held out; the weights that are best on them are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from erta_framework import Profile

NUDGE = 1e-3
"""By how much a weight is moved for its derivative."""
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties that are tried, relative to the curvature along each weight."""


@dataclass(frozen=True, slots=True)
class Edge:
    """The steps from one computed step to the next.

    Attributes:
        steps: Indices of the steps.
        depth: Velocities that are cached then.
    """

    steps: tuple[int, ...]
    depth: int


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """Weights after the refinement.

    Attributes:
        rows: Of velocities, latents and displacement by step, `[T, C, n + 2]`.
        before: Mean log10 of the held-out samples' squared error at first.
        after: The same at the end.
        runs: Runs that it took.
    """

    rows: Tensor
    before: float
    after: float
    runs: int


class RunWith(Protocol):
    """Samples with weights."""

    def __call__(self, rows: Tensor, *, keep: bool = False) -> Tensor:
        """Samples `[N, C, ...]` at the end of a run.

        Args:
            rows: Weights of velocities, latents and displacement by step, `[T, C, n + 2]`.
            keep: The next runs begin like this one, so that its network calls can be kept.
        """
        ...


def find_edges(computed: Sequence[int], num_steps: int, depth: int) -> tuple[Edge, ...]:
    """The edges of a schedule; the first step is left alone, as no weight is fitted there.

    Example:
        >>> [edge.steps for edge in find_edges((0, 1, 4), 6, depth=4)]
        [(1, 2, 3), (4, 5)]
    """
    found = []
    for place, start in enumerate(computed):
        end = computed[place + 1] if place + 1 < len(computed) else num_steps
        steps = tuple(index for index in range(start, end) if index > 0)
        if steps:
            found.append(Edge(steps, min(place + 1, depth)))
    return tuple(found)


def refine_rows(
    rows: Tensor,
    edges: Sequence[Edge],
    run: RunWith,
    exact: Tensor,
    held_out: Tensor,
    rounds: int = 2,
) -> Refinement:
    """Move the weights of a fit towards a smaller error at the end of the run.

    Args:
        rows: Weights of velocities, latents and displacement by step, `[T, C, n + 2]`.
        edges: Of the schedule.
        run: Samples with weights.
        exact: Where the samples should end, `[N, C, ...]`.
        held_out: Which samples only judge, `[N]`.
        rounds: Most Gauss-Newton steps; each takes a run for every weight of every edge, and one
            for each damping that is tried.
    """
    fitted, moves = ~held_out, list_moves(rows, edges)
    goal = exact.double()[fitted]
    base = run(rows, keep=True).double()
    best = judge(base, exact)[held_out].mean()
    before, runs = float(best), 1
    for number in range(rounds):
        if number:  # what the weights of the round before say is kept
            base = run(rows, keep=True).double()
        slopes = [(run(rows + NUDGE * move).double() - base)[fitted] / NUDGE for move in moves]
        found = None
        for change in solve_changes(slopes, base[fitted] - goal):
            moved = rows + sum(c * move for c, move in zip(change.tolist(), moves, strict=True))
            quality = judge(run(moved), exact)[held_out].mean()
            if bool(quality < best):
                best, found = quality, moved
        runs += len(moves) + len(DAMPINGS) + bool(number)
        if found is None:
            break
        rows = found
    return Refinement(rows, before, float(best), runs)


def solve_changes(slopes: Sequence[Tensor], residual: Tensor) -> list[Tensor]:
    """The Gauss-Newton changes of the weights, one for each damping.

    Args:
        slopes: Of the samples at the end, for each weight, `[N, C, ...]`.
        residual: How far they are from where they should be, `[N, C, ...]`.
    """
    jacobian = torch.stack(list(slopes), dim=-1).flatten(1, -2)  # [N, elements, weights]
    apart = residual.flatten(1)
    weight = 1.0 / apart.square().sum(dim=1).clamp(min=1e-30)
    square = torch.einsum("n,new,nev->wv", weight, jacobian, jacobian)
    right = torch.einsum("n,new,ne->w", weight, jacobian, apart)
    least = 1e-12 * square.diagonal().max()
    penalties = [damping * square.diagonal() + least for damping in DAMPINGS]
    return [-torch.linalg.solve(square + penalty.diag(), right) for penalty in penalties]


def judge(samples: Tensor, exact: Tensor) -> Tensor:
    """Log10 of each sample's mean squared error, `[N]`."""
    error = (samples.double() - exact.double()).square().flatten(1).mean(dim=1)
    return error.clamp(min=1e-30).log10()


def list_moves(rows: Tensor, edges: Sequence[Edge]) -> list[Tensor]:
    """One change of the weights for each velocity of each edge, and for the latents."""
    latent = rows.shape[-1] - 2
    moves = []
    for edge in edges:
        for column in (*range(edge.depth), latent):
            move = torch.zeros_like(rows)
            move[list(edge.steps), :, column] = 1.0
            moves.append(move)
    return moves


def with_rows(profile: Profile, rows: Tensor) -> Profile:
    """The profile with these weights instead of those that its normal equations give."""
    refined = rows.double() * profile.samples
    return replace(profile, statistics={**profile.statistics, "refined": refined})
