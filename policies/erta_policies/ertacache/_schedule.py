"""ERTACache's threshold walk, lambda for a number of calls, and even spacing.

All schedules here compute step 0 and the last. Errors are a table `[T, T]`: `errors[j, i]` is the
error of reusing at step i the residual of step j, and only `j < i` is read.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError


def reused_pairs(schedule: StepSchedule) -> list[tuple[int, int]]:
    """The pairs `(source, step)` of the reused steps of a schedule, in order.

    Example:
        >>> reused_pairs(StepSchedule.of({0, 2, 3}, 4))
        [(0, 1)]
    """
    return [(source, step) for step, source in enumerate(schedule.sources) if source != step]


def walk(errors: Tensor, threshold: float, warmup: int = 1) -> StepSchedule:
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
    return StepSchedule.of(computed, num_steps, threshold, compute_last=True)


def solve_threshold(errors: Tensor, calls: int, warmup: int = 1) -> StepSchedule:
    """The threshold walk that comes closest to `calls` network calls, made up to exactly these.

    The number of calls jumps as lambda grows, and need not fall: a later refresh can be a worse
    residual to go on with. Bisection would therefore miss solutions. But the walk only compares
    lambda with entries of the table, so it changes only where lambda passes one of them: at most
    T(T - 1)/2 + 1 values of lambda matter, and all are tried at once. Of several that come equally
    close without exceeding them, the smallest is taken. Calls that are left over compute, one
    after the other, the reused step with the largest error. Solving for a number of calls is ours;
    ERTACache (arXiv 2508.21091) gives a lambda for each model.

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
    thresholds = list_lambdas(errors)
    counts = count_walk_calls(errors, thresholds, warmup)
    least = int(counts.min())
    if not least <= calls <= num_steps:
        raise ProfileError(
            f"{calls} network calls cannot be scheduled over {num_steps} steps: between {least} "
            f"(the first {min(warmup, num_steps)}, the last and those without a residual) "
            f"and {num_steps} are possible"
        )
    reached = torch.where(counts <= calls, counts, -1)  # -1: takes too many
    best = int((reached == reached.max()).nonzero()[0])
    return spend_calls(walk(errors, float(thresholds[best]), warmup), errors, calls)


def spend_calls(schedule: StepSchedule, errors: Tensor, calls: int) -> StepSchedule:
    """A schedule with more computed steps: those whose reuse errs most, one after the other.

    Args:
        schedule: Of at most so many calls.
        errors: `[T, T]`, from `pair_errors`.
        calls: Network calls of each branch, at most the number of steps.

    Example:
        >>> errors = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0]]) / 10
        >>> spend_calls(StepSchedule.of({0, 3}, 4), errors, calls=3).computed
        (0, 2, 3)
    """
    while schedule.calls < calls:
        _, worst = max(reused_pairs(schedule), key=lambda pair: float(errors[pair]))
        schedule = StepSchedule.of(
            {*schedule.computed, worst}, schedule.num_steps, schedule.threshold
        )
    return schedule


def list_lambdas(errors: Tensor) -> Tensor:
    """One lambda for every outcome that a walk over `errors` can have, rising, 0 first: `[M]`.

    They lie halfway between neighbouring errors, so that a rounded lambda gives the same walk.
    """
    pairs = torch.ones_like(errors, dtype=torch.bool).triu(diagonal=1)
    values = errors[pairs & errors.isfinite()].unique()  # type: ignore[no-untyped-call]
    if not len(values):
        return errors.new_zeros(1)
    below, above = values[:-1], values[1:]
    halfway = below + (above - below) / 2
    # of neighbours without a number between them, the upper: the walk reuses what is below lambda
    between = torch.where(halfway > below, halfway, above)
    return torch.cat([values.new_zeros(1), between, values[-1:] * 1.01 + 1e-12])


def count_walk_calls(errors: Tensor, thresholds: Tensor, warmup: int) -> Tensor:
    """Network calls of the walk at each of M thresholds, `[M]`.

    All walks advance side by side, one step at a time. Invariant: before step `index`, `newest[m]`
    is the newest step that walk m has computed, and `calls[m]` how many those are. Step 0 is the
    first of them, and the last step, which no walk visits, is added at the end.
    """
    newest = torch.zeros_like(thresholds, dtype=torch.long)
    calls = torch.ones_like(newest)
    for index in range(1, errors.shape[0] - 1):
        reuses = errors[newest, index] < thresholds
        computes = ~reuses if index >= warmup else torch.ones_like(reuses)
        newest = torch.where(computes, index, newest)
        calls += computes
    return calls + (errors.shape[0] > 1)


@lru_cache(maxsize=64)
def spread_evenly(calls: int, num_steps: int) -> StepSchedule:
    """`calls` network calls spread evenly over the steps, both ends included.

    The uniform baseline of ERTACache's ablation (arXiv 2508.21091); how to round is ours.

    Raises:
        ProfileError: Fewer than 2 calls, or more than there are steps.

    Example:
        >>> spread_evenly(3, 6).computed
        (0, 2, 5)
    """
    if not min(2, num_steps) <= calls <= num_steps:
        raise ProfileError(
            f"{calls} calls cannot be spread over {num_steps} steps: use 2 to {num_steps}"
        )
    if calls == 1:
        return StepSchedule.of((), num_steps)
    steps = (round(k * (num_steps - 1) / (calls - 1)) for k in range(calls))
    return StepSchedule.of(steps, num_steps)
