"""The search over schedules of so many calls: annealing, then hill climbing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Search:
    """A search whose plans are all run, each once.

    Attributes:
        num_steps: Steps of the run.
        prefix: Steps at the start that every plan computes.
        measure: Loss of a plan, from a run under it.
        generator: Draws the moves.
        losses: Losses of the plans that were run.
    """

    num_steps: int
    prefix: int
    measure: Callable[[tuple[int, ...]], float]
    generator: random.Random
    losses: dict[tuple[int, ...], float] = field(default_factory=dict)

    def judge(self, steps: tuple[int, ...]) -> float:
        """The loss of a plan; it is run if it was not yet."""
        if steps not in self.losses:
            self.losses[steps] = self.measure(steps)
        return self.losses[steps]

    def move(self, steps: tuple[int, ...]) -> tuple[int, ...]:
        """A plan in which one computed step after the prefix is another one."""
        free = sorted(set(range(self.num_steps)) - set(steps))
        place = self.generator.randrange(self.prefix, len(steps))
        moved = {*steps[:place], *steps[place + 1 :], self.generator.choice(free)}
        return tuple(sorted(moved))


def start_plan(num_steps: int, calls: int, share: float) -> tuple[tuple[int, ...], int]:
    """Where the search starts, and how many steps at the start of it are fixed.

    The prefix is `share` of the calls, at least the first step. The others are spread evenly to
    the last step, which is ours.

    Example:
        >>> start_plan(50, 8, 0.3)
        ((0, 1, 9, 17, 25, 33, 41, 49), 2)
    """
    prefix = max(1, min(calls, round(share * calls)))
    rest = calls - prefix
    left = num_steps - prefix
    spread = {prefix - 1 + round(left * (place + 1) / rest) for place in range(rest)}
    return (*range(prefix), *sorted(spread)), prefix


def search_steps(
    search: Search,
    start: tuple[int, ...],
    *,
    iterations: int = 200,
    climbs: int = 5,
    neighbours: int = 20,
    hot: float = 0.1,
    cold: float = 1e-4,
) -> tuple[int, ...]:
    """The best plan that a search finds.

    Annealing draws a move of one step at a time and takes it if the loss falls, or with the
    probability `exp(-rise / temperature)`; the temperature falls geometrically. Each hill climb
    then looks at some moves of the best plan and takes the best of them if it is better. A rise
    counts relative to the loss of the start, which is ours.

    Args:
        search: Runs plans.
        start: The first plan.
        iterations: Moves of the annealing.
        climbs: Hill climbs.
        neighbours: Moves that a climb looks at.
        hot: First temperature.
        cold: Last temperature.

    Example:
        >>> search = Search(20, 1, lambda steps: float(abs(sum(steps) - 30)), random.Random(0))
        >>> sum(search_steps(search, (0, 1, 2)))
        30
    """
    scale = search.judge(start) or 1.0
    best = current = start
    if len(start) in (search.prefix, search.num_steps):  # nothing can be moved
        return start
    for number in range(iterations):
        warmth = hot * (cold / hot) ** (number / max(1, iterations - 1))
        tried = search.move(current)
        rise = (search.judge(tried) - search.judge(current)) / scale
        if rise <= 0 or search.generator.random() < math.exp(-rise / warmth):
            current = tried
        best = min(best, current, key=search.judge)
    for _ in range(climbs):
        around = [search.move(best) for _ in range(neighbours)]
        best = min((best, *around), key=search.judge)
    return best
