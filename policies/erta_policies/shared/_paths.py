"""Cheapest schedules for every number of network calls at once: dynamic programming over edges.

Nodes are steps, 0 to T, of which T is the end of sampling. An edge from j to i says that step j is
computed, that the steps between are answered with it, and that i is computed next; a path from 0 to
T is a schedule, and its number of edges is its number of network calls. The last edge is that of
one step: the last step is always computed. What an edge costs is the caller's to say, so that one
program serves the published planners: MeanCache's peak-suppressed path (arXiv 2601.19961, edges
to a power gamma), a schedule of refreshes under a sum of errors as other papers report for GCache,
CacheQuant's ordered grouping (arXiv 2503.01323) and ProCache's plans whose gaps never grow (arXiv
2512.17298). Solving them with one program over (calls, step), or over (calls, step, gap before it)
where an edge depends on the evaluation before, is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Path:
    """A schedule and what it costs.

    Attributes:
        steps: Computed steps, rising; 0 and the last are among them.
        total: Sum of the costs of its edges, each to the power gamma, undone by its root.
    """

    steps: tuple[int, ...]
    total: float

    @property
    def calls(self) -> int:
        """Network calls of each branch."""
        return len(self.steps)


def banded(costs: Tensor, longest: int | None = None) -> Tensor:
    """Costs by start and end, `[N, N]`, as costs by start and length, `[N, L]`.

    Args:
        costs: Infinite where there is no edge.
        longest: L, the longest edge in steps; by default all of them.

    Example:
        >>> inf = float("inf")
        >>> banded(torch.tensor([[inf, 1.0, 2.0], [inf, inf, 3.0], [inf, inf, inf]]))
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


def falling(edges: Tensor) -> Tensor:
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


def cheapest(edges: Tensor, gamma: float = 1.0, most: int | None = None) -> Mapping[int, Path]:
    """The cheapest path from 0 to T for each exact number of edges, by that number.

    It takes `T * L` additions a number of calls where edges stand alone, and `T * L ** 2` where
    they depend on the one before; nothing is random. Of paths that cost the same, the one whose
    last edges are longest is taken.

    Args:
        edges: `[N, L]` by start and length, or `[L, N, L]` by the length of the edge before as
            well, infinite where there is none. Before the first edge stands one of length L.
        gamma: Power of the costs: 1 adds them up, above 1 no single edge can be bad.
        most: Largest number of edges; by default T.

    Returns:
        A path for each number of edges that reaches T.

    Example:
        >>> inf = float("inf")
        >>> table = torch.tensor([[inf, 0, 1, 9], [inf, inf, 0, 2], [inf, inf, inf, 0], [inf] * 4])
        >>> {calls: path.steps for calls, path in cheapest(banded(table)).items()}
        {2: (0, 2), 3: (0, 1, 2)}
    """
    powered, scale = prepared(edges, gamma)
    gaps, nodes, longest = powered.shape
    last = nodes - 1
    reached = powered.new_full((gaps, nodes), torch.inf)
    reached[-1, 0] = 0.0
    choices: list[tuple[Tensor, Tensor]] = []
    found: dict[int, Path] = {}
    for calls in range(1, min(most or last, last) + 1):
        total = reached[:, :, None] + powered
        before = total.argmin(dim=0)  # [N, L]: gap before each edge
        best = total.gather(0, before[None])[0]
        arrived = best.new_full((longest, nodes), torch.inf)
        for length in range(1, longest + 1):
            arrived[length - 1, length:] = best[: nodes - length, length - 1]
        ends = longest - 1 - arrived.flip(0).argmin(dim=0)  # [N]: longest of the cheapest edges
        choices.append((before, ends))
        reached = arrived if gaps > 1 else arrived.amin(dim=0, keepdim=True)
        value = float(arrived[:, last].min())
        if math.isfinite(value):
            steps = traced(choices, gaps)
            found[calls] = Path(steps, scale * value ** (1 / gamma))
    return found


def prepared(edges: Tensor, gamma: float) -> tuple[Tensor, float]:
    """Edges `[gaps, N, L]` in units of the largest cost, to the power, ending with one step."""
    table = (edges if edges.ndim == 3 else edges[None]).double().clone()
    nodes, longest = table.shape[1:]
    for length in range(2, longest + 1):
        table[:, nodes - 1 - length, length - 1] = torch.inf
    finite = table[table.isfinite()]
    scale = float(finite.max()) if len(finite) else 1.0
    scale = scale or 1.0
    return (table / scale) ** gamma, scale


def traced(choices: list[tuple[Tensor, Tensor]], gaps: int) -> tuple[int, ...]:
    """The starts of the edges of the cheapest path that has just reached the end."""
    before, ends = choices[-1]
    node = len(ends) - 1
    length = int(ends[node]) + 1
    steps: list[int] = []
    for number in range(len(choices) - 1, -1, -1):
        before, _ = choices[number]
        node -= length
        steps.append(node)
        if number:
            gap = int(before[node, length - 1]) if gaps > 1 else int(choices[number - 1][1][node])
            length = gap + 1
    return tuple(reversed(steps))
