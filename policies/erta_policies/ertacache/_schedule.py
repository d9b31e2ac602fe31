"""Static schedules: ERTACache's threshold walk, lambda for a number of calls, even spacing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from erta_framework.errors import ProfileError


@dataclass(frozen=True, slots=True)
class Plan:
    """A static schedule.

    Attributes:
        computed: Indices of the computed steps, rising.
        sources: For every step, the step whose residual it uses (itself if computed).
        threshold: The lambda that made it, if a threshold walk did.

    Example:
        >>> Plan.of({2}, 5).sources
        (0, 0, 2, 2, 4)
    """

    computed: tuple[int, ...]
    sources: tuple[int, ...]
    threshold: float | None = None

    @classmethod
    def of(cls, computed: set[int], num_steps: int, threshold: float | None = None) -> Plan:
        """A schedule from its computed steps; step 0 and the last are always added."""
        chosen = computed | {0, num_steps - 1}
        steps = tuple(sorted(chosen))
        sources, newest = [], 0
        for index in range(num_steps):
            newest = index if index in chosen else newest
            sources.append(newest)
        return cls(steps, tuple(sources), threshold)

    @property
    def calls(self) -> int:
        """Network calls of each branch."""
        return len(self.computed)


def reused_pairs(plan: Plan) -> list[tuple[int, int]]:
    """The pairs `(source, step)` of the reused steps of a plan, in order.

    Example:
        >>> reused_pairs(Plan.of({0, 2}, 4))
        [(0, 1)]
    """
    return [(source, step) for step, source in enumerate(plan.sources) if source != step]


def walk(errors: Tensor, threshold: float, warmup: int = 1) -> Plan:
    """ERTACache's threshold walk on logged residuals.

    Steps are visited in sampling order with the residual of the last computed one; a step whose
    error is below the threshold reuses it, any other is computed. Step 0 and the last are always
    computed. Source: ERTACache, arXiv 2508.21091, offline policy; computing the last step is ours.

    Args:
        errors: `[T, T]`, from `pair_errors`.
        threshold: lambda.
        warmup: Steps at the start that are always computed; the paper states none.

    Example:
        >>> errors = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0]]) / 10
        >>> walk(errors, 0.15).computed
        (0, 2, 3)
    """
    table = errors.tolist()
    num_steps, newest, computed = len(table), 0, {0}
    for index in range(1, num_steps - 1):
        if index < warmup or not table[newest][index] < threshold:
            newest = index
            computed.add(index)
    return Plan.of(computed, num_steps, threshold)


def solve_threshold(errors: Tensor, calls: int, warmup: int = 1) -> Plan:
    """The threshold walk that comes closest to `calls` network calls without exceeding them.

    The number of calls jumps as lambda grows, and need not fall: a later refresh can be a worse
    residual to go on with. A walk changes only where lambda passes an error, so every lambda that
    matters is tried; of several that fit, the smallest is taken. Solving for a number of calls
    is ours; ERTACache (arXiv 2508.21091) gives a lambda for each model.

    Args:
        errors: `[T, T]`, from `pair_errors`.
        calls: Network calls of each branch.
        warmup: Steps at the start that are always computed.

    Raises:
        ProfileError: Fewer calls than the forced steps, or more than there are steps.

    Example:
        >>> errors = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0]]) / 10
        >>> solve_threshold(errors, calls=3).computed
        (0, 2, 3)
    """
    errors = errors.double()
    num_steps = errors.shape[0]
    thresholds = distinct_thresholds(errors)
    counts = walk_calls(errors, thresholds, warmup)
    least = int(counts.min())
    if not least <= calls <= num_steps:
        raise ProfileError(
            f"{calls} network calls cannot be scheduled over {num_steps} steps: between {least} "
            f"(the first {min(warmup, num_steps)}, the last and those without a residual) "
            f"and {num_steps} are possible"
        )
    reached = torch.where(counts <= calls, counts, -1)
    best = int((reached == reached.max()).nonzero()[0])
    return walk(errors, float(thresholds[best]), warmup)


def distinct_thresholds(errors: Tensor) -> Tensor:
    """One lambda for every outcome that a walk over `errors` can have, rising, 0 first.

    They lie halfway between neighbouring errors, so that a rounded lambda gives the same plan.
    """
    pairs = torch.ones_like(errors, dtype=torch.bool).triu(diagonal=1)
    values = errors[pairs & errors.isfinite()].unique()  # type: ignore[no-untyped-call]
    if not len(values):
        return errors.new_zeros(1)
    below, above = values[:-1], values[1:]
    halfway = below + (above - below) / 2
    between = torch.where(halfway > below, halfway, above)
    return torch.cat([values.new_zeros(1), between, values[-1:] * 1.01 + 1e-12])


def walk_calls(errors: Tensor, thresholds: Tensor, warmup: int) -> Tensor:
    """Network calls of the walk at every threshold, `[L]`; all walks go on side by side."""
    newest = torch.zeros_like(thresholds, dtype=torch.long)
    calls = torch.ones_like(newest)
    for index in range(1, errors.shape[0] - 1):
        reuses = errors[newest, index] < thresholds
        computes = ~reuses if index >= warmup else torch.ones_like(reuses)
        newest = torch.where(computes, index, newest)
        calls += computes
    return calls + (errors.shape[0] > 1)


@lru_cache(maxsize=64)
def evenly(calls: int, num_steps: int) -> Plan:
    """`calls` network calls spread evenly over the steps, both ends included.

    The uniform baseline of ERTACache's ablation (arXiv 2508.21091); how to round is ours.

    Raises:
        ProfileError: Fewer than 2 calls, or more than there are steps.

    Example:
        >>> evenly(3, 6).computed
        (0, 2, 5)
    """
    if not min(2, num_steps) <= calls <= num_steps:
        raise ProfileError(
            f"{calls} calls cannot be spread over {num_steps} steps: use 2 to {num_steps}"
        )
    if calls == 1:
        return Plan.of(set(), num_steps)
    return Plan.of({round(k * (num_steps - 1) / (calls - 1)) for k in range(calls)}, num_steps)
