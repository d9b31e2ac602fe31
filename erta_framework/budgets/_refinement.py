"""The search that refines a plan: computed steps are moved one by one, and each move is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise


def search_moves(
    steps: tuple[int, ...],
    quality: float,
    trials: int,
    judge: Callable[[tuple[int, ...]], float],
) -> tuple[tuple[int, ...], float]:
    """A plan after so many trials of moved steps, and its quality.

    The search is greedy. It tries the moves of the best plan so far, in the order of `list_moves`;
    the first that raises the quality is kept at once, and the moves start anew from there. No plan
    is judged twice, and the search ends after `trials` plans or where no untried move is left.

    Invariant: `quality` is what `judge` says of `best`, and it only rises. On whatever is judged,
    the result is therefore never worse than the plan it started from.

    Args:
        steps: Computed steps of the plan, rising.
        quality: What `judge` says of them.
        trials: Most plans that are judged.
        judge: The quality of a plan; higher is better.

    Example:
        >>> search_moves((0, 2, 4), 0.0, trials=9, judge=lambda steps: float(steps[1]))
        ((0, 3, 4), 3.0)
    """
    best = steps
    candidates = list_moves(best)
    tried = {best}
    for _ in range(trials):
        candidate = next((moved for moved in candidates if moved not in tried), None)
        if candidate is None:
            break
        tried.add(candidate)
        found = judge(candidate)
        if found > quality:
            best, quality = candidate, found
            candidates = list_moves(best)
    return best, quality


def list_moves(steps: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Plans with one computed step moved, nearest moves first; the first and last stay.

    Of moves by the same distance, those of steps between the longest gaps come first.

    Example:
        >>> list(list_moves((0, 2, 4)))
        [(0, 1, 4), (0, 3, 4)]
    """
    inner = sorted(range(1, len(steps) - 1), key=lambda k: (steps[k - 1] - steps[k + 1], k))
    widest = max((b - a for a, b in pairwise(steps)), default=1)
    for distance in range(1, widest):
        for place in inner:
            for moved in (steps[place] - distance, steps[place] + distance):
                if steps[place - 1] < moved < steps[place + 1]:
                    yield (*steps[:place], moved, *steps[place + 1 :])
