"""A budget given beside the policies instead of inside one: who takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Never

from erta_framework.errors import PolicyError
from erta_framework.plugins._policy import Policy
from erta_framework.plugins._registry import list_budgeted

BUDGETS = ("calls", "speedup", "work", "psnr", "seconds", "quality")
"""The kinds of budget, as options beside the policies."""


def take_budget(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split options into the budgets among them and the others; those that are None are left out.

    Example:
        >>> take_budget({"speedup": 2, "calls": None, "order": 1})
        ({'speedup': 2}, {'order': 1})
    """
    budget = {k: v for k, v in options.items() if k in BUDGETS and v is not None}
    return budget, {k: v for k, v in options.items() if k not in BUDGETS}


def with_budget(policies: Sequence[Policy], budget: Mapping[str, Any]) -> tuple[Policy, ...]:
    """The policies, where the first that takes a budget gets this one.

    Args:
        policies: In call order.
        budget: Such as `{"speedup": 2.0}`; without any, the policies stay as they are.

    Raises:
        PolicyError: None of them takes it, or it is no budget.
    """
    if not budget:
        return tuple(policies)
    found = list(policies)
    for place, policy in enumerate(found):
        other = give_budget(policy, budget)
        if other is not None:
            found[place] = other
            return tuple(found)
    refuse_budget(", ".join(policy.name for policy in found) or "no policies", budget)


def give_budget(policy: Policy, budget: Mapping[str, Any]) -> Policy | None:
    """The policy with this budget; None if it takes none."""
    ask = getattr(policy, "with_budget", None)
    found = ask(budget) if ask is not None else None
    if found is None and [*budget] == ["calls"] and hasattr(policy, "with_calls"):
        found = policy.with_calls(budget["calls"])
    return found if isinstance(found, Policy) else None


def refuse_budget(names: str, budget: Mapping[str, Any]) -> Never:
    """Say that these policies take no budget, and which would.

    Raises:
        PolicyError: Always.
    """
    asked = " and ".join(f"{kind}={amount}" for kind, amount in budget.items())
    raise PolicyError(
        f"{asked} was asked of {names}, which cannot be planned for it; use one of "
        f"{', '.join(list_budgeted())}"
    )
