"""Moves the computed steps of a schedule, judged by where the cached run ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

LEAST_GAIN = 1e-3
"""By how much log10 of the error must fall for a move to be taken."""


class TrySteps(Protocol):
    """How large the error at the end of a run is."""

    def __call__(self, steps: tuple[int, ...], *, keep: bool = False) -> float:
        """Mean log10 of the samples' squared errors.

        Args:
            steps: Computed steps, in order, the first is 0.
            keep: The next runs begin like this one.
        """
        ...


def move_steps(
    start: tuple[int, ...], num_steps: int, measure: TrySteps, sweeps: int
) -> tuple[int, ...]:
    """Move one computed step at a time while the error falls.

    A sweep goes through all computed steps but the first, from the last one on, then from the
    first one on, and so forth. Each goes as far to one side as the error falls, or else to the
    other side. A run with a moved step begins like the run without, so only what comes after it
    has to be computed. `erta_framework.budgets` refines plans by single trials instead, in an order
    that does not care what runs share.

    Args:
        start: Computed steps to begin with.
        num_steps: Steps of the whole run.
        measure: The error under a schedule.
        sweeps: Most sweeps; ends earlier where none helps.

    Example:
        >>> move_steps((0, 5), 10, lambda steps, keep=False: abs(steps[1] - 3), sweeps=1)
        (0, 3)
    """
    steps, least = start, measure(start, keep=True)
    for number in range(sweeps):
        before = steps
        places = range(1, len(steps))
        for place in reversed(places) if number % 2 == 0 else places:
            found, error = move_one(steps, num_steps, place, measure, least)
            if found != steps:
                steps, least = found, error
                measure(steps, keep=True)
        if steps == before:
            break
    return steps


def move_one(
    steps: tuple[int, ...], num_steps: int, place: int, measure: TrySteps, least: float
) -> tuple[tuple[int, ...], float]:
    """The steps with one of them moved, and the error; as they were where nothing helps."""
    found = steps
    for towards in (-1, 1):
        for moved in list_moves(steps, num_steps, place, towards):
            error = measure(moved)
            if not error < least - LEAST_GAIN:
                break
            found, least = moved, error
        if found != steps:
            break
    return found, least


def list_moves(
    steps: tuple[int, ...], num_steps: int, place: int, towards: int
) -> Iterator[tuple[int, ...]]:
    """The schedules with one step moved further and further to one side.

    Example:
        >>> list(list_moves((0, 2, 5), 6, 1, 1))
        [(0, 3, 5), (0, 4, 5)]
    """
    bounds = (*steps, num_steps)
    moved = steps[place] + towards
    while bounds[place - 1] < moved < bounds[place + 1]:
        yield (*steps[:place], moved, *steps[place + 1 :])
        moved += towards
