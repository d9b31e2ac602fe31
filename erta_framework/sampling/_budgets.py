"""The policies of a sampler that was given a budget beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erta_framework.errors import InputError
from erta_framework.plugins import (
    BUDGETS,
    PipelineFacts,
    Policy,
    load_chooser,
    take_budget,
    with_budget,
)


def choose_for_budget(
    policies: Sequence[Policy], options: Mapping[str, Any], num_steps: int
) -> tuple[Policy, ...]:
    """The policies with a budget; without any policies, some that need no profile.

    Args:
        policies: In call order.
        options: The budget.
        num_steps: Steps of the schedule.

    Raises:
        InputError: An option is no budget.
        CapabilityError: Nothing is chosen for so few steps.
        PolicyError: No policy takes the budget.
    """
    budget, unknown = take_budget(options)
    if unknown:
        raise InputError(
            f"a sampler has no {' and no '.join(unknown)}; beside its own options it takes one "
            f"budget of {', '.join(BUDGETS)}"
        )
    if budget and not policies:
        return load_chooser()(PipelineFacts("Sampler", num_steps=num_steps), budget).policies
    return with_budget(policies, budget)
