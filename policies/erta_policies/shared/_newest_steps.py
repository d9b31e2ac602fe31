"""When a place inside the network is due, by a schedule that is known before sampling."""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework import Policy
from erta_framework.budgets import as_planner
from erta_framework.errors import PolicyError


def require_schedule(when: Policy, owner: str) -> None:
    """Refuse a policy whose steps are not known before sampling.

    Raises:
        PolicyError: Names both policies.
    """
    if as_planner(when) is None:
        raise PolicyError(
            f"{owner} got when={when!r}, whose steps are not known before sampling; give a "
            "schedule, such as refresh_interval"
        )


def plan_newest(when: Policy, num_steps: int) -> tuple[int, ...]:
    """For every step, the newest step up to it that a schedule computes.

    A place that was kept before that step is due. So a schedule serves also beside a rule that
    leaves out whole steps.
    """
    planner = as_planner(when)
    assert planner is not None
    return find_newest(planner.plan(num_steps).computed, num_steps)


def find_newest(computed: Sequence[int], num_steps: int) -> tuple[int, ...]:
    """For every step, the newest of these steps up to it; step 0 is one in any case.

    Example:
        >>> find_newest((0, 2), 4)
        (0, 0, 2, 2)
    """
    chosen = set(computed)
    found, newest = [], 0
    for index in range(num_steps):
        newest = index if index in chosen else newest
        found.append(newest)
    return tuple(found)
