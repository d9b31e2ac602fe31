"""What a policy assigned in one network call: whether it is a plan, and whether it is a new one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from erta_framework.errors import PolicyError
from erta_framework.modules._action_rules import HANDLERS
from erta_framework.modules._actions import Action, Keep, Pass, ReuseKept, Skip
from erta_framework.modules._owners import Owner
from erta_framework.modules._parts import check_sites
from erta_framework.modules._places import Place

Plan = Mapping[Place, Action]
LASTING = frozenset({Keep, ReuseKept, Skip, Pass})
"""Actions that are carried out alike in call after call, while the same kind of thing is kept."""


def is_same_plan(plan: Plan, before: Plan) -> bool:
    """Whether a plan has the very actions of another one, at the same places in the same order."""
    return [*plan] == [*before] and all(map(operator.is_, plan.values(), before.values()))


def check_mapping(plan: object, owner: Owner, where: Callable[[], str]) -> Plan:
    """A plan as the policy gave it, if it is one.

    Raises:
        PolicyError: It is no mapping.
    """
    if plan is None:
        return {}
    if not isinstance(plan, Mapping):
        raise PolicyError(
            f"{owner.name} returned {plan!r} from assign {where()}; return a mapping from places "
            "of call.sites to actions, or None"
        )
    return plan


def check_plan(
    plan: Plan, own: Mapping[Place, object], owner: Owner, where: Callable[[], str]
) -> None:
    """Refuse a plan of other places, or of something else than actions.

    Raises:
        PolicyError: Names the place.
    """
    check_sites(plan, own, lambda: owner.name)
    for place, action in plan.items():
        if type(action) not in HANDLERS:
            raise PolicyError(
                f"{owner.name} assigned {action!r} to {place} {where()}; give KEEP, "
                "ReuseKept(...), SKIP, PASS, Rows(...), Tokens(...) or Ask(...)"
            )
