"""What a plan costs: full steps, what runs at every step, and refreshed tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from erta_framework.errors import BudgetError
from erta_framework.modules import Parts, Place
from erta_policies.shared import FULL, SELECT, StepPlan

RatioOf = Callable[[int, Place], float]
"""The part of its tokens that a place refreshes at a step."""


def measure_work(plan: StepPlan, call: Parts, refreshed: Iterable[Place], ratio: RatioOf) -> float:
    """The work of a plan in network calls, by what the modules cost.

    Args:
        plan: The plan.
        call: A network call, whose costs are known.
        refreshed: The places that refresh tokens.
        ratio: How many, by step.
    """
    assert call.costs is not None
    share = call.share or 0.0
    work = len(plan) * (1.0 - share) + plan.count(FULL) * share
    selecting = [k for k, state in enumerate(plan.states) if state == SELECT]
    for place in refreshed:
        known = find_own(place, call.sites) & call.costs.flops.keys()
        cost = call.costs.count_idle(known) / call.costs.total
        work += cost * sum(ratio(k, place) for k in selecting)
    return work


def find_own(place: Place, sites: Iterable[Place]) -> set[str]:
    """The modules of a place that are no places of their own."""
    others = {other.path for other in sites if other is not place}
    return {path for path in place.modules if path not in others}


def choose_plan(
    plans: Iterable[StepPlan], work: float, measure: Callable[[StepPlan], float], owner: str
) -> StepPlan:
    """The first of some plans whose work is within a budget.

    Raises:
        BudgetError: None is; says what the cheapest costs.
    """
    least = float("inf")
    for plan in plans:
        cost = measure(plan)
        if cost <= work + 1e-9:
            return plan
        least = min(least, cost)
    raise BudgetError(
        f"{owner} has the work of {work:g} network calls, and the cheapest of its plans costs "
        f"{least:.2f}: what it does not select runs at every step; give more, select more "
        "modules, or allow longer gaps",
        least=least,
    )
