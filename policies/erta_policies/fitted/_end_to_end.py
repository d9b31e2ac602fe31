"""End-to-end refinement: fitted weights moved so that the *end* of the run comes nearer.

The fit goes step by step, and each step does what is best for itself. What counts is where the run
ends. So the weights are moved by Gauss-Newton steps on the error at the end. The slopes come from
runs in which one weight is moved a little. That is done once. Later rounds keep these slopes,
corrected by where the runs have ended that were tried. So a later round costs a few runs. Where it
gains nothing, the gradient corrects them as well, if the driver and the network let it through.

Only computed latents matter: between two computed steps the latents move by a weighted sum of the
cached velocities and of themselves, however many steps that takes. So one change of each weight
serves all steps from a computed one to the next, which is called an edge here.

What is minimised is the mean of the *logarithm* of each sample's error, so that no sample outweighs
the others: a Gauss-Newton step on squares, each sample's weighed by the reciprocal of its error.
Some samples are held out; the weights that are best on them are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erta_framework import Profile
from erta_policies.fitted._descent import Descent, Differentiate, RunWith


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
        runs: Runs that it took; one with its gradient counts `GRADIENT_CALLS`.
        rounds: How many there were.
        gradients: How many of them took a gradient.
        blocked: Why none can be taken; empty where it can.
    """

    rows: Tensor
    before: float
    after: float
    runs: int
    rounds: int
    gradients: int
    blocked: str

    def __str__(self) -> str:
        """In words, for the provenance of a profile."""
        why = f", {self.blocked}" if self.blocked else ""
        return f"rounds: {self.rounds}; gradients: {self.gradients}{why}"


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
    differentiate: Differentiate | None = None,
) -> Refinement:
    """Move the weights of a fit towards a smaller error at the end of the run.

    Args:
        rows: Weights of velocities, latents and displacement by step, `[T, C, n + 2]`.
        edges: Of the schedule.
        run: Samples with weights.
        exact: Where the samples should end, `[N, C, ...]`.
        held_out: Which samples only judge, `[N]`.
        rounds: Most Gauss-Newton steps. Each takes a run for each damping that is tried; before the
            first there is one for every weight of every edge.
        differentiate: Samples with the gradient of weights, where the driver offers that; it is
            asked where a round has gained nothing.
    """
    goal = exact.double()

    def measure(ends: Tensor) -> float:
        return float(judge(ends, goal)[held_out].mean().nan_to_num(math.inf))

    descent = Descent(rows, list_moves(rows, edges), run, goal, ~held_out, measure)
    before, made, gradients, stuck = descent.best, 0, 0, False
    blocked = "the driver offers none" if differentiate is None else ""
    while made < rounds:
        if stuck and differentiate is not None and not blocked:
            blocked = descent.take_gradient(differentiate)
            gradients += not blocked
        better = descent.try_changes()
        made += 1
        if stuck and not better:
            break
        stuck = not better
    return Refinement(descent.rows, before, descent.best, descent.runs, made, gradients, blocked)


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
    """The profile with these weights instead of those that its normal equations give.

    It stands for them, even where calibration ended nearer with a rule, until their error is known.
    """
    errors = profile.statistics["errors"].clone()
    errors[0] = 0.0
    found = {"refined": rows.double() * profile.samples, "errors": errors}
    return replace(profile, statistics={**profile.statistics, **found})
