"""Cheapest schedules for every number of network calls at once: dynamic programming over edges.

Nodes are steps, 0 to T, of which T is the end of sampling. An edge from j to i means: step j is
computed, the steps between reuse it, and i is computed next. A path from 0 to T is a schedule, and
its number of edges is its number of network calls. The last edge is one step long: the last step
is always computed. The caller prices the edges, so that one program serves the published planners:
MeanCache's peak-suppressed path (arXiv 2601.19961, edges to a power gamma), a schedule of refreshes
under a sum of errors as other papers report for GCache, CacheQuant's ordered grouping (arXiv
2503.01323) and ProCache's plans whose gaps never grow (arXiv 2512.17298). Solving them with one
program over (calls, step), or over (calls, step, gap before it) where an edge depends on the
evaluation before, is ours.

Shapes: N = T + 1 nodes; L, the longest edge in steps. Edges are kept in a band, by start and
length: `edges[j, l - 1]` is the cost of the edge from j to j + l.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from erta_framework.budgets import StepSchedule


def to_band(costs: Tensor, longest: int | None = None) -> Tensor:
    """Costs by start and end, `[N, N]`, as costs by start and length, `[N, L]`.

    Args:
        costs: Infinite where there is no edge.
        longest: L, the longest edge in steps; by default all of them.

    Example:
        >>> inf = float("inf")
        >>> to_band(torch.tensor([[inf, 1.0, 2.0], [inf, inf, 3.0], [inf, inf, inf]]))
        tensor([[1., 2.],
                [3., inf],
                [inf, inf]])
    """
    nodes = len(costs)
    most = nodes - 1 if longest is None else min(longest, nodes - 1)
    band = costs.new_full((nodes, most), torch.inf)
    for length in range(1, most + 1):
        band[: nodes - length, length - 1] = costs.diagonal(length)
    return band


def forbid_growing_gaps(edges: Tensor) -> Tensor:
    """The same edges, none of which may be longer than the one before it: `[L, N, L]`.

    The family of ProCache (arXiv 2512.17298), long gaps early and short ones late.
    """
    longest = edges.shape[-1]
    before, length = torch.arange(1, longest + 1)[:, None], torch.arange(1, longest + 1)
    allowed = (length <= before)[:, None, :]
    spread = edges if edges.ndim == 3 else edges[None].expand(longest, -1, -1)
    found = torch.where(allowed, spread, torch.inf)
    found[:, 0] = spread[-1, 0]  # nothing comes before the first edge
    return found


def find_cheapest_paths(
    edges: Tensor, gamma: float = 1.0, most: int | None = None
) -> Mapping[int, StepSchedule]:
    """The cheapest path from 0 to T for each exact number of edges, by that number.

    It takes `T * L` additions a number of calls where edges stand alone, and `T * L ** 2` where
    they depend on the one before; nothing is random. Of paths that cost the same, the one whose
    last edges are longest is taken.

    Args:
        edges: `[N, L]` by start and length, or `[L, N, L]` by the length of the edge before as
            well, infinite where there is none. The first edge counts as one after an edge of
            length L.
        gamma: Power of the costs: 1 adds them up, above 1 no single edge can be bad.
        most: Largest number of edges; by default T.

    Returns:
        A schedule for each number of edges that reaches T. It computes step 0 and the last;
        `predicted` is the sum of the edge costs, each to the power gamma, undone by its root.

    Example:
        >>> inf = float("inf")
        >>> table = torch.tensor([[inf, 0, 1, 9], [inf, inf, 0, 2], [inf, inf, inf, 0], [inf] * 4])
        >>> paths = find_cheapest_paths(to_band(table))
        >>> {calls: path.computed for calls, path in paths.items()}
        {2: (0, 2), 3: (0, 1, 2)}
    """
    powered, scale = normalise_edges(edges, gamma)
    gaps, nodes, longest = powered.shape  # gaps is 1, or L where edges depend on the one before
    last = nodes - 1
    # Invariant: after k rounds, reached[g, i] is the least cost of a path of k edges from node 0
    # to node i whose last edge is g + 1 steps long (of any length, if gaps is 1); infinite where
    # there is none. Every path of k + 1 edges is one of these and an edge more (Bellman).
    reached = powered.new_full((gaps, nodes), torch.inf)
    reached[-1, 0] = 0.0
    choices: list[tuple[Tensor, Tensor]] = []  # of each round, to read the paths back
    found: dict[int, StepSchedule] = {}
    for calls in range(1, min(most or last, last) + 1):
        # extend every path by every edge: [gap before, start, length], then drop the gap before
        total = reached[:, :, None] + powered
        before = total.argmin(dim=0)  # [N, L]: index of the best gap before each edge
        best = total.gather(0, before[None])[0]  # [N, L]: by start and length
        # from start and length to length and end: an edge of length l ends at start + l
        arrived = best.new_full((longest, nodes), torch.inf)
        for length in range(1, longest + 1):
            arrived[length - 1, length:] = best[: nodes - length, length - 1]
        # flipped, so that of equal costs argmin finds the longest edge
        ends = longest - 1 - arrived.flip(0).argmin(dim=0)  # [N]: length - 1 of the best last edge
        choices.append((before, ends))
        reached = arrived if gaps > 1 else arrived.amin(dim=0, keepdim=True)
        value = float(arrived[:, last].min())
        if math.isfinite(value):
            steps = trace_back(choices, gaps)
            found[calls] = StepSchedule.of(steps, last, predicted=scale * value ** (1 / gamma))
    return found


def normalise_edges(edges: Tensor, gamma: float) -> tuple[Tensor, float]:
    """Edges `[gaps, N, L]` in units of the largest cost and to the power gamma, and that unit.

    In these units no power overflows. Edges longer than one step that reach T are removed, so that
    the last step is computed.
    """
    table = (edges if edges.ndim == 3 else edges[None]).double().clone()
    nodes, longest = table.shape[1:]
    for length in range(2, longest + 1):
        table[:, nodes - 1 - length, length - 1] = torch.inf
    finite = table[table.isfinite()]
    scale = float(finite.max()) if len(finite) else 1.0
    scale = scale or 1.0
    return (table / scale) ** gamma, scale


def trace_back(choices: list[tuple[Tensor, Tensor]], gaps: int) -> tuple[int, ...]:
    """The starts of the edges of the cheapest path that has just reached T, rising.

    Invariant: before each round of the loop, `node` is where the edge of that round ends and
    `length` how long it is.

    Args:
        choices: Of each round, the best gap before every edge, `[N, L]`, and the length - 1 of the
            best edge into every node, `[N]`.
        gaps: 1, or L where edges depend on the one before.
    """
    _, ends = choices[-1]
    node = len(ends) - 1
    length = int(ends[node]) + 1
    steps: list[int] = []
    for number in range(len(choices) - 1, -1, -1):
        before, _ = choices[number]
        node -= length
        steps.append(node)
        if number:
            # with memory the edge itself says which gap came before, else the node it starts from
            gap = int(before[node, length - 1]) if gaps > 1 else int(choices[number - 1][1][node])
            length = gap + 1
    return tuple(reversed(steps))
