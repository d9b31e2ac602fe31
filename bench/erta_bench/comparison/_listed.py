"""Published lists of computed steps, for numbers of calls and steps that they are not for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from erta_bench.comparison._contender import ListedSteps
from erta_framework.errors import BudgetError


def read_list(text: str) -> tuple[int, ...]:
    """A list of steps written with ranges.

    Example:
        >>> read_list("0-3,7")
        (0, 1, 2, 3, 7)
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def choose_steps(listed: ListedSteps, calls: int, num_steps: int) -> tuple[int, ...]:
    """The published list of so many calls, or one made of those that there are.

    Between two lists their quantiles are interpolated, beyond the shortest or longest those of it
    are taken: the family of OTCache (arXiv 2606.31026) without its search for an anchor, which
    makes the list ours. So is scaling to another number of steps.

    Args:
        listed: The lists.
        calls: Network calls of each branch.
        num_steps: Steps of the run.

    Raises:
        BudgetError: There are fewer calls than a first and a last step.

    Example:
        >>> listed = ListedSteps("steps", 9, ("0,1,2,4,8", "0,2,8"))
        >>> choose_steps(listed, 3, 9), choose_steps(listed, 4, 9), choose_steps(listed, 2, 9)
        ((0, 2, 8), (0, 1, 3, 8), (0, 8))
    """
    if calls < 2:
        raise BudgetError(f"{calls} calls; a list has a first and a last step", least=2)
    lists = sorted((read_list(text) for text in listed.lists), key=len)
    lengths = [len(steps) for steps in lists]
    scale = (num_steps - 1) / (listed.num_steps - 1)
    if calls in lengths and scale == 1.0:
        return lists[lengths.index(calls)]
    place = min(max(bisect_left(lengths, calls), 1), len(lists) - 1)
    few, many = lists[place - 1], lists[place]
    share = min(max((calls - len(few)) / (len(many) - len(few)), 0.0), 1.0)
    found: list[int] = []
    for index in range(calls):
        part = index / (calls - 1)
        step = (1 - share) * find_quantile(few, part) + share * find_quantile(many, part)
        found.append(round(scale * step))
    return separate(found, num_steps)


def find_quantile(steps: Sequence[int], part: float) -> float:
    """The step at a part of the list from 0 to 1, between its neighbours."""
    place = part * (len(steps) - 1)
    left = min(int(place), len(steps) - 2)
    return steps[left] + (place - left) * (steps[left + 1] - steps[left])


def separate(steps: Sequence[int], num_steps: int) -> tuple[int, ...]:
    """The steps with equal ones moved apart; the last one stays the last of the run.

    Example:
        >>> separate([0, 1, 1, 4], 5)
        (0, 1, 2, 4)
    """
    found: list[int] = []
    for index, step in enumerate(steps):
        least = found[-1] + 1 if found else 0
        found.append(min(max(step, least), num_steps - (len(steps) - index)))
    return tuple(found)
