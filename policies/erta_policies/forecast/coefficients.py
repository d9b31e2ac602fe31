"""Weights of earlier evaluations in a forecast: plain numbers, from where they were made.

Every basis is linear in the evaluations, so a forecast is one weighted sum of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def newton(nodes: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """The polynomial through the evaluations, at `start`; exact for any spacing.

    Args:
        nodes: Where the evaluations were made, newest first; all different.
        start: Where the forecast is wanted.
        end: Not used; the end of the interval.

    Example:
        >>> newton([2.0, 1.0], 4.0, 5.0)
        (3.0, -2.0)
    """
    weights = []
    for j, node in enumerate(nodes):
        others = [other for m, other in enumerate(nodes) if m != j]
        weights.append(math.prod((start - other) / (node - other) for other in others))
    return tuple(weights)


def adams(nodes: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """The mean of that polynomial over `[start, end]`: variable-step Adams-Bashforth.

    With one node it is plain reuse, with two it is Adams-Bashforth 2.

    Example:
        >>> adams([1.0, 0.0], 1.0, 2.0)
        (1.5, -0.5)
    """
    if start == end:
        return newton(nodes, start, end)
    weights = []
    for j, node in enumerate(nodes):
        # roots relative to start, so that the powers stay small
        roots = [other - start for m, other in enumerate(nodes) if m != j]
        scale = math.prod((node - start) - root for root in roots)
        length, total = end - start, 0.0
        for power, factor in enumerate(polynomial(roots)):
            total += factor * length**power / (power + 1)
        weights.append(total / scale)
    return tuple(weights)


def polynomial(roots: Sequence[float]) -> list[float]:
    """Factors of `prod (x - root)`, lowest power first."""
    degree = len(roots)
    return [
        (-1.0) ** (degree - power)
        * sum(math.prod(chosen) for chosen in combinations(roots, degree - power))
        for power in range(degree + 1)
    ]


def differences(nodes: Sequence[float]) -> list[list[float]]:
    """Weights of each level of the difference table of TaylorSeer.

    Level 0 is the newest evaluation; level j + 1 is the change of level j between the two newest
    updates, over their distance. Row j holds the weights of the evaluations, newest first.
    """
    count = len(nodes)
    # table[a] is the table after evaluation a, oldest evaluations have fewer levels
    tables: list[list[list[float]]] = []
    for age in reversed(range(count)):
        unit = [1.0 if k == age else 0.0 for k in range(count)]
        levels = [unit]
        if tables:
            width = nodes[age] - nodes[age + 1]
            for level, old in enumerate(tables[-1]):
                levels.append([(a - b) / width for a, b in zip(levels[level], old, strict=True)])
        tables.append(levels)
    return tables[-1]


def taylor(nodes: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """TaylorSeer's forecast: backward differences as derivatives (arXiv 2503.06923, eq. as coded).

    Exact for a line; with order 2 and more it is biased, which `newton` is not.
    """
    return combined(
        nodes, [(start - nodes[0]) ** level / math.factorial(level) for level in range(len(nodes))]
    )


def hermite(
    nodes: Sequence[float], start: float, end: float, scale: float = 0.5
) -> tuple[float, ...]:
    """HiCache's forecast: scaled Hermite polynomials instead of powers (arXiv 2508.16984).

    Order 1 is a damped line: slope times `2 * scale ** 2`.
    """
    distance = start - nodes[0]
    factors = [1.0]
    for level in range(1, len(nodes)):
        value = scale**level * hermite_polynomial(level, scale * distance)
        factors.append(value / math.factorial(level))
    return combined(nodes, factors)


def hermite_polynomial(order: int, x: float) -> float:
    """Physicists' Hermite polynomial."""
    before, now = 1.0, 2.0 * x
    if order == 0:
        return before
    for n in range(1, order):
        before, now = now, 2.0 * x * now - 2.0 * n * before
    return now


def combined(nodes: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """Weights of the evaluations when each level of the difference table has a factor."""
    table = differences(nodes)
    return tuple(
        sum(factor * row[k] for factor, row in zip(factors, table, strict=True))
        for k in range(len(nodes))
    )
