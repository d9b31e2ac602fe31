"""`RuleWrapper`: the base of policies that hold one skip rule and call its hooks."""

from __future__ import annotations

import inspect
from typing import Any

from erta_framework import Policy, Profiler, Traits
from erta_framework.errors import PolicyError
from erta_framework.plugins import flatten


class RuleWrapper(Policy):
    """Base of policies around one skip rule; they have the traits of the rule.

    Source: ours.

    Attributes:
        policy: The skip rule.

    Raises:
        PolicyError: The policy does not decide, or stands for several.
    """

    policy: Policy

    def __post_init__(self) -> None:
        parts = flatten([self.policy])
        if len(parts) != 1 or not hasattr(self.policy, "decide"):
            raise PolicyError(
                f"{type(self).__name__} got {self.policy!r}, which "
                + ("stands for several policies" if len(parts) != 1 else "does not decide")
                + "; give it one skip rule and list the others beside it"
            )

    @property
    def traits(self) -> Traits:
        return self.policy.traits

    def calibrator(self) -> Profiler | None:
        return self.policy.calibrator()

    def prepare(self) -> None:
        self.policy.prepare()


def call_hook(policy: Policy, hook: str, **arguments: object) -> Any:
    """Call a hook of a policy with those of the arguments that it takes."""
    method = getattr(policy, hook)
    taken = inspect.signature(method).parameters
    return method(**{name: arguments[name] for name in taken})
