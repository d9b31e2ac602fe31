"""When the modules of one component run, from how fast their outputs change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.errors import PolicyError
from erta_framework.modules import Parts, Place
from erta_policies.shared import SAMPLES, read_rows
from erta_policies.smoothcache._profiler import name_component

ComponentSchedule = Mapping[str, Sequence[int]]
"""For each component one entry a step: 1 where its modules run, 0 where they are reused."""


def expand_steps(computed: Sequence[int], num_steps: int) -> tuple[int, ...]:
    """One entry a step: 1 at these steps, 0 elsewhere.

    Example:
        >>> expand_steps((0, 2), 4)
        (1, 0, 1, 0)
    """
    chosen = set(computed)
    return tuple(int(step in chosen) for step in range(num_steps))


STRICT = expand_steps((0, 3, 5, *range(7, 50)), 50)
LOOSE = expand_steps((0, 4, 7, *range(10, 49, 2), 49), 50)
PUBLISHED: Mapping[str, ComponentSchedule] = {
    "dit-xl-2-256, threshold 0.08": {"attention": STRICT, "mlp": STRICT},
    "dit-xl-2-256, threshold 0.18": {"attention": LOOSE, "mlp": LOOSE},
}
"""The schedules of 50 steps that the authors ship for DiT-XL/2 at 256 pixels (Roblox/SmoothCache,
`50-N-3-threshold-0.08.json` and `50-N-3-threshold-0.18.json`)."""


def plan_component(errors: Sequence[Sequence[float]], threshold: float) -> tuple[int, ...]:
    """The steps at which the modules of a component run, one entry a step.

    At a computed step i it takes the largest k whose error of step i + k against step i is within
    the threshold, and reuses the output of step i for these k steps. The last step is computed.

    Args:
        errors: For each step, the relative change since 1, 2, ... steps before; infinite where it
            is not known.
        threshold: Largest change that is reused.

    Example:
        >>> plan_component([[9, 9], [0.1, 9], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2]], 0.2)
        (1, 0, 0, 1, 1)
    """
    steps = len(errors)
    computed, index = {steps - 1}, 0
    while index < steps:
        computed.add(index)
        within = [
            back
            for back in range(1, len(errors[0]) + 1)
            if index + back < steps and errors[index + back][back - 1] <= threshold
        ]
        index += 1 + max(within, default=0)
    return expand_steps(sorted(computed), steps)


def read_errors(profile: Profile) -> dict[str, list[list[float]]]:
    """Mean change of each component, by step and lookback, over blocks, samples and branches."""
    sums: Tensor = profile.statistics["errors"].sum(dim=0)
    counts: Tensor = profile.statistics[SAMPLES].sum(dim=0).unsqueeze(-1)
    mean = sums / counts
    steps, lookback = mean.shape[1:]
    # a step has nothing to look back at before the first one
    late = torch.arange(steps).unsqueeze(1) > torch.arange(lookback)
    mean = torch.where(late & (counts > 0), mean, float("inf"))
    found: list[list[list[float]]] = mean.tolist()
    return dict(zip(read_rows(profile), found, strict=True))


def plan_all(
    errors: Mapping[str, Sequence[Sequence[float]]], threshold: float
) -> dict[str, tuple[int, ...]]:
    """The schedule of each component at one threshold."""
    return {name: plan_component(rows, threshold) for name, rows in errors.items()}


def count_work(schedule: ComponentSchedule, num_steps: int, costs: Mapping[str, float]) -> float:
    """The work of a schedule in network calls, whose other parts run at every step.

    Args:
        schedule: Of each component.
        num_steps: Steps.
        costs: What each component costs, as a share of the network.

    Example:
        >>> count_work({"attn": (1, 0, 0, 1)}, 4, {"attn": 0.5})
        3.0
    """
    saved = [costs[name] * (num_steps - sum(runs)) for name, runs in schedule.items()]
    return num_steps - sum(saved)


def share_costs(own: Sequence[Place], call: Parts) -> dict[str, float]:
    """What each component costs, as a share of the network.

    Raises:
        PolicyError: It is not known.
    """
    if call.costs is None:
        raise PolicyError(
            "SmoothCache has a budget of work, but what its modules cost is not known; give a "
            "threshold"
        )
    shares: dict[str, float] = {}
    for place in own:
        idle = call.costs.count_idle(path for path in place.modules if path in call.costs.flops)
        name = name_component(place)
        shares[name] = shares.get(name, 0.0) + idle / call.costs.total
    return shares
