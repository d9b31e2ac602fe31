"""What a policy does in a combination, from the hooks that it implements."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from erta_framework.plugins import Policy, Traits, find_hooks, read_hook_options


class Role(StrEnum):
    """What a policy does in a combination.

    `WHEN` answers `decide`, `WHAT` answers `forward` (or replaces computed outputs as well),
    `CORRECTION` wraps `forward`, `TIME` answers `adjust_interval`. `LIMIT` wraps `decide`,
    `OBSERVER` emits a profile, `RECIPE` stands for several policies and `INSIDE` answers `assign`,
    inside the network, beside anything, or is held by a policy that does: those four take no place
    in a combination.
    """

    WHEN = "when"
    WHAT = "what"
    CORRECTION = "correction"
    TIME = "time"
    LIMIT = "limit"
    OBSERVER = "observer"
    RECIPE = "recipe"
    INSIDE = "inside"


PLACES = (Role.WHEN, Role.CORRECTION, Role.WHAT, Role.TIME)
"""The roles of a combination in call order: a correction encloses the predictor."""

Groups = Mapping[Role, Mapping[str, Policy]]
"""Policies by role and name."""


def read_default_traits(cls: type[Policy]) -> Traits:
    """The traits of a class with the defaults of its settings."""
    try:
        return object.__new__(cls).traits
    except AttributeError:  # they follow from a setting that has no default
        return Traits()


def find_role(cls: type[Policy]) -> Role | None:
    """The role of a policy class, from its hooks; None for one that only watches steps.

    Example:
        >>> from erta_framework.testing import AlternateSteps
        >>> find_role(AlternateSteps)
        <Role.WHEN: 'when'>
    """
    if cls.parts is not Policy.parts:
        return Role.RECIPE
    found = find_hooks(cls)
    if not found:
        return Role.INSIDE  # refused on its own
    wraps = {hook for hook in found if read_hook_options(object.__new__(cls), hook)["wrapper"]}
    if "on_session_end" in found:
        return Role.OBSERVER
    if "decide" in found:
        return Role.LIMIT if "decide" in wraps else Role.WHEN
    if "adjust_interval" in found:
        return Role.TIME
    if "forward" not in found:
        return Role.INSIDE if "assign" in found else None
    replaces = "forward" not in wraps or read_default_traits(cls).corrects_computed
    return Role.WHAT if replaces else Role.CORRECTION
