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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


RunWith = Callable[[Tensor], Tensor]
"""Samples `[N, C, ...]` at the end of a run with these weights by step, `[T, C, n + 2]`."""


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
    fitted = ~held_out
    base = run(rows).double()
    runs = 1
    best = judge(base, exact)[held_out].mean()
    before = float(best)
    for _ in range(rounds):
        moves = list_moves(rows, edges)
        jacobian = torch.stack(
            [(run(rows + NUDGE * move).double() - base)[fitted] / NUDGE for move in moves], dim=-1
        ).flatten(1, -2)  # [N, elements, weights]
        runs += len(moves)
        residual = (base - exact.double())[fitted].flatten(1)
        weight = 1.0 / residual.square().sum(dim=1)
        square = torch.einsum("n,new,nev->wv", weight, jacobian, jacobian)
        right = torch.einsum("n,new,ne->w", weight, jacobian, residual)
        found = None
        for damping in DAMPINGS:
            penalty = damping * square.diagonal() + 1e-12 * square.diagonal().max()
            change = -torch.linalg.solve(square + penalty.diag(), right)
            moved = rows + sum(c * move for c, move in zip(change.tolist(), moves, strict=True))
            ends = run(moved).double()
            runs += 1
            quality = judge(ends, exact)[held_out].mean()
            if bool(quality < best):
                best, found = quality, (moved, ends)
        if found is None:
            break
        rows, base = found
    return Refinement(rows, before, float(best), runs)


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
