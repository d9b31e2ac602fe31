"""Masks of steps as run lengths: how long the network computes, how long its output is reused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, zip_longest

from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.errors import InputError


def as_mask(schedule: StepSchedule) -> list[int]:
    """1 where a step computes and 0 where it reuses.

    Example:
        >>> as_mask(StepSchedule.of({0, 2, 4}, num_steps=5))
        [1, 0, 1, 0, 1]
    """
    return [int(source == step) for step, source in enumerate(schedule.sources)]


def to_run_lengths(mask: Sequence[int]) -> tuple[list[int], list[int]]:
    """The lengths of the runs that compute, and of those that reuse.

    Source: `steps_mask` of cache-dit 1.5.3, whose `compute_bins` and `cache_bins` they are.

    Args:
        mask: 1 for a step that computes, 0 for one that reuses; begins with 1.

    Example:
        >>> to_run_lengths([1, 1, 0, 1, 0, 0])
        ([2, 1], [1, 2])
    """
    runs = [(computed, len(list(run))) for computed, run in groupby(mask)]
    return [n for computed, n in runs if computed], [n for computed, n in runs if not computed]


def expand_run_lengths(
    compute_bins: Sequence[int],
    cache_bins: Sequence[int],
    total_steps: int | None = None,
    where: str = "steps_mask",
) -> tuple[int, ...]:
    """The mask of run lengths, in turns, beginning with one that computes.

    Where one list is longer, its other runs follow one another. Runs beyond `total_steps` are cut
    off. Both are as in cache-dit.

    Raises:
        InputError: The runs are shorter than `total_steps`; names both lengths.

    Example:
        >>> expand_run_lengths([2, 1], [1, 2], total_steps=5)
        (1, 1, 0, 1, 0)
    """
    whole = sum(compute_bins) + sum(cache_bins)
    if total_steps is not None and whole < total_steps:
        raise InputError(
            f"{where}: compute_bins {list(compute_bins)} and cache_bins {list(cache_bins)} are "
            f"{whole} steps together, the schedule has {total_steps}; make the runs longer"
        )
    mask: list[int] = []
    for computed, reused in zip_longest(compute_bins, cache_bins, fillvalue=0):
        mask += [1] * computed + [0] * reused
    return tuple(mask[:total_steps])
