"""MeanCache's paths: which steps are computed and how far back each edge looks.

A path is released with the paper's code, or planned from a profile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import InputError, PolicyError, ProfileError, suggest
from erta_policies.shared import find_cheapest_paths, to_band

KIND = ProfileKind("mean_cache_profiler", {"cost": Entry(shape="K T L")})
STEPS = 50
"""Steps of every released table."""


@dataclass(frozen=True, slots=True)
class EdgePath:
    """A path through the schedule: its nodes are the computed steps.

    Attributes:
        fresh: Computed steps, rising.
        spans: K of the edge from each of them to the next, one fewer than `fresh`; 0 and 1 are
            edges without a correction.

    Raises:
        PolicyError: The steps do not rise from 0, or the spans do not fit them.

    Example:
        >>> EdgePath((0, 1, 4), (0, 2)).by_step(5)
        (0, 2, 2, 2, 0)
    """

    fresh: tuple[int, ...]
    spans: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.fresh or self.fresh[0] != 0 or sorted({*self.fresh}) != list(self.fresh):
            raise PolicyError(f"the fresh steps {self.fresh} of MeanCache must rise from step 0")
        if len(self.spans) != len(self.fresh) - 1 or any(span < 0 for span in self.spans):
            raise PolicyError(
                f"MeanCache has {len(self.fresh)} fresh steps and the spans {self.spans}; give one "
                "span of at least 0 for each edge between two fresh steps, "
                f"{len(self.fresh) - 1} in all"
            )

    def by_step(self, num_steps: int) -> tuple[int, ...]:
        """The span of the edge that starts at or contains each step; 0 from the last node on.

        Raises:
            InputError: The path does not end at the last step.
        """
        if self.fresh[-1] != num_steps - 1:
            raise InputError(
                f"this path of MeanCache ends at step {self.fresh[-1]}, the schedule of "
                f"{num_steps} steps at {num_steps - 1}; the last step is always fresh: use a path "
                "for this number of steps"
            )
        spans = [0] * num_steps
        for edge, span in enumerate(self.spans):
            start, end = self.fresh[edge], self.fresh[edge + 1]
            spans[start:end] = [span] * (end - start)
        return tuple(spans)


# ------------------------------------------------------------------------------- released
@cache
def read_tables() -> dict[str, dict[int, EdgePath]]:
    """The released paths by model and number of network calls, 50 steps each.

    Source: UnicomAI/MeanCache at 2e12280a (Apache-2.0), the scripts for Qwen-Image, Qwen-Image-2512
    and Z-Image.

    Example:
        >>> read_tables()["qwen-image"][10].fresh
        (0, 1, 3, 7, 14, 21, 28, 35, 42, 49)
    """
    text = files("erta_policies.meancache").joinpath("tables.json").read_text(encoding="utf-8")
    return {
        model: {
            int(calls): EdgePath(tuple(row["fresh"]), tuple(row["spans"]))
            for calls, row in rows.items()
        }
        for model, rows in json.loads(text)["models"].items()
    }


def look_up_path(model: str, calls: int | None) -> EdgePath:
    """One released path.

    Raises:
        PolicyError: There is none; lists what exists and how to calibrate.
    """
    models = read_tables()
    if model not in models:
        raise PolicyError(
            f"MeanCache has no released table for {model!r}; {suggest(model, models)} or make "
            "one for your model: `erta calibrate --policy meancache`, then "
            "MeanCache(profile=..., calls=...)"
        )
    if calls not in models[model]:
        known = ", ".join(map(str, sorted(models[model])))
        raise PolicyError(
            f"the released tables of MeanCache for {model!r} have {known} calls of {STEPS} steps, "
            f"not {calls}; use one of them, or calibrate and give profile=..."
        )
    return models[model][calls]


# -------------------------------------------------------------------------------- planned
def price_edges(profile: Profile) -> tuple[Tensor, Tensor]:
    """Cost of every edge `[T + 1, T + 1]` at its best span, and that span.

    Infinite where no edge was measured: backwards, and longer than the profiler looked.

    Source: MeanCache, arXiv 2601.19961: parallel edges collapse to the best span. The mean over
    prompts is the paper's, the mean magnitude as norm is ours, since the paper's is not known.

    Example:
        >>> costs, spans = price_edges(profile)  # doctest: +SKIP
    """
    sums = profile.statistics["cost"].double() / profile.samples  # [K, T, longest]
    most, num_steps, longest = sums.shape
    costs = torch.full((num_steps + 1, num_steps + 1), torch.inf, dtype=torch.float64)
    best = torch.zeros(num_steps + 1, num_steps + 1, dtype=torch.long)
    for start in range(num_steps):
        usable = max(1, min(most, start))  # a span of K looks K steps back
        for end in range(start + 1, min(start + longest, num_steps) + 1):
            cost, span = sums[:usable, start, end - start - 1].min(dim=0)
            costs[start, end], best[start, end] = cost, span + 1
    return costs, best


def find_shortest_path(costs: Tensor, calls: int, gamma: float) -> tuple[int, ...]:
    """Nodes of the path from 0 to T with `calls` edges and the least `sum(cost ** gamma)`.

    `gamma` above 1 keeps any single edge from being bad; 1 is the ordinary shortest path. The last
    edge is that of one step, so that the last step is computed, as in every released table.

    Source: MeanCache, arXiv 2601.19961, peak-suppressed shortest path under a budget; that it
    spends the whole budget is ours.

    Args:
        costs: `[T + 1, T + 1]`, infinite where there is no edge.
        calls: Edges, which is the number of network calls of each branch.
        gamma: Power of the costs.

    Returns:
        The nodes without T: the computed steps.

    Raises:
        ProfileError: No path has so few edges, or there are fewer steps; says how many it takes.

    Example:
        >>> inf = float("inf")
        >>> costs = torch.tensor([[inf, 0, 1, 9], [inf, inf, 0, 2], [inf, inf, inf, 0], [inf] * 4])
        >>> find_shortest_path(costs, calls=2, gamma=4.0)
        (0, 2)
    """
    last = len(costs) - 1
    if calls > last:
        raise ProfileError(f"{calls} network calls are more than the {last} steps of the schedule")
    paths = find_cheapest_paths(to_band(costs), gamma)
    if calls not in paths:
        raise ProfileError(
            f"{calls} network calls cannot span {last} steps: the longest edge of this profile "
            f"makes it at least {min(paths)}; ask for more calls, or calibrate with a larger "
            "`longest`"
        )
    return paths[calls].computed


def plan_path(profile: Profile, calls: int, gamma: float) -> EdgePath:
    """The path of a profile for a number of network calls.

    Raises:
        ProfileError: So few calls cannot span the schedule.
    """
    costs, best = price_edges(profile)
    fresh = find_shortest_path(costs, calls, gamma)
    return EdgePath(fresh, tuple(int(best[start, end]) for start, end in pairwise(fresh)))
