"""Weights of earlier evaluations in a forecast, from the places at which they were made.

Every basis is linear in the evaluations, so a forecast is one weighted sum of them and its weights
are plain numbers. Places ("nodes") are sigmas or step indices, newest first and all different; a
forecast is wanted at `start`, or as the mean over `[start, end]`. The weights of every basis add
up to 1, so that a constant is continued exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations


def newton(nodes: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """The value at `start` of the polynomial through the evaluations; exact for any spacing.

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
    """The mean over `[start, end]` of the polynomial through the evaluations.

    This is variable-step Adams-Bashforth: plain reuse with one node, Adams-Bashforth 2 with two.
    Node j weighs the mean of its Lagrange polynomial, `prod (x - other) / prod (node - other)`.

    Example:
        >>> adams([1.0, 0.0], 1.0, 2.0)
        (1.5, -0.5)
    """
    if start == end:
        return newton(nodes, start, end)
    weights = []
    for j, node in enumerate(nodes):
        # the Lagrange polynomial of this node in powers of x - start, integrated power by power;
        # relative to start, so that the powers stay small
        roots = [other - start for m, other in enumerate(nodes) if m != j]
        scale = math.prod((node - start) - root for root in roots)
        length, total = end - start, 0.0
        for power, factor in enumerate(expand_roots(roots)):
            total += factor * length**power / (power + 1)
        weights.append(total / scale)
    return tuple(weights)


def expand_roots(roots: Sequence[float]) -> list[float]:
    """Coefficients of `prod (x - root)`, lowest power first (Vieta)."""
    degree = len(roots)
    return [
        (-1.0) ** (degree - power)
        * sum(math.prod(chosen) for chosen in combinations(roots, degree - power))
        for power in range(degree + 1)
    ]


def difference_weights(nodes: Sequence[float]) -> list[list[float]]:
    """TaylorSeer's table of differences, as weights of the evaluations.

    Level 0 is the newest evaluation. Level j + 1 is the change of level j between the two newest
    computed steps, over their distance; the table is updated at each of them. As every level is
    linear in the evaluations, it is kept as weights: row j holds those of level j, newest first.
    """
    count = len(nodes)
    # one table after each evaluation, oldest first; the first has one level, each next one more
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
    """TaylorSeer's forecast: backward differences in the place of derivatives.

    `sum_j D_j k^j / j!`, with k the distance to the newest evaluation. Exact for a line. By our
    algebra it is biased from order 2 on, which `newton` is not.

    Source: TaylorSeer, arXiv 2503.06923, as in its code.
    """
    return combine_levels(
        nodes, [(start - nodes[0]) ** level / math.factorial(level) for level in range(len(nodes))]
    )


def hermite(
    nodes: Sequence[float], start: float, end: float, scale: float = 0.5
) -> tuple[float, ...]:
    """HiCache's forecast: scaled Hermite polynomials in the place of powers.

    `D_0 + sum_j scale^j H_j(scale k) D_j / j!`. By our algebra order 1 is a damped line, whose
    slope is multiplied by `2 * scale ** 2`.

    Source: HiCache, arXiv 2508.16984.
    """
    distance = start - nodes[0]
    factors = [1.0]
    for level in range(1, len(nodes)):
        value = scale**level * evaluate_hermite(level, scale * distance)
        factors.append(value / math.factorial(level))
    return combine_levels(nodes, factors)


def evaluate_hermite(order: int, x: float) -> float:
    """The physicists' Hermite polynomial, by `H_{n+1} = 2 x H_n - 2 n H_{n-1}`."""
    before, now = 1.0, 2.0 * x
    if order == 0:
        return before
    for n in range(1, order):
        before, now = now, 2.0 * x * now - 2.0 * n * before
    return now


def combine_levels(nodes: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """Weights of the evaluations in `sum_j factors[j] * D_j`, over the levels of the table."""
    table = difference_weights(nodes)
    return tuple(
        sum(factor * row[k] for factor, row in zip(factors, table, strict=True))
        for k in range(len(nodes))
    )
