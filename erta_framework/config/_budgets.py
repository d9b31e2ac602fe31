"""A budget beside policies, of a configuration or of `attach`, put into the one that takes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from erta_framework.config._convert import split_name
from erta_framework.config._problems import Misfit
from erta_framework.errors import ConfigError
from erta_framework.plugins import Policy, give_budget, refuse_budget
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.text import show_value


def place_budget(
    specs: Sequence[Any], budget: Mapping[str, Any], only: Collection[str] | None = None
) -> list[Any]:
    """Policies as they are listed, with a budget in the first that takes it.

    A policy with an option of the budget's own name, such as `calls`, gets it there.

    Args:
        specs: Names, `{name: options}` or policies.
        budget: Such as `{"speedup": 2.0}`; without any, nothing changes.
        only: Third-party distributions that may be loaded.

    Raises:
        ConfigError: The policy that takes it has another budget already.
        PolicyError: None of the policies takes it.
        RegistryError: A policy is not installed.
    """
    found = list(specs)
    names: list[str] = []
    for place, spec in enumerate(found if budget else ()):
        other: Policy | dict[str, Any] | None
        if isinstance(spec, Policy):
            other, name = give_budget(spec, budget), spec.name
        else:
            try:
                name, options = split_name(spec)
            except Misfit:  # whoever builds it says what is wrong, and where
                return found
            other = place_in_options(name, options, budget, only)
        if other is not None:
            found[place] = other
            return found
        names.append(name)
    if budget:
        refuse_budget(", ".join(names) or "no policies", budget)
    return found


def place_in_options(
    name: str, options: Mapping[str, Any], budget: Mapping[str, Any], only: Collection[str] | None
) -> dict[str, Any] | None:
    """One policy as it is listed, with the budget among its options; None if it takes none.

    Raises:
        ConfigError: It has another budget already.
    """
    own = {field.name for field in fields(policy_catalogue(only).load(name))}
    if set(budget) <= own:
        given = {**budget}
    elif "budget" in own:
        given = {"budget": dict(budget)}
    else:
        return None
    for key in given:
        if options.get(key) is not None:
            raise ConfigError(
                f"{name} has {key} {show_value(options[key])}, and "
                f"{show_value(budget)} was asked for beside it; give one of the two"
            )
    return {name: {**options, **given}}
