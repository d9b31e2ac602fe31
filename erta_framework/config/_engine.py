"""An engine from whatever names policies: a name, a file, a list, or policies themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from erta_framework.config._budgets import place_budget
from erta_framework.config._build import build_policies, build_policy
from erta_framework.config._load import load_run
from erta_framework.config._run_config import RunConfig
from erta_framework.errors import InputError
from erta_framework.plugins import Engine, Policy, take_budget, with_budget

PolicyLike = str | Path | Policy | Engine | Sequence[Any]
"""A policy's name, a policy, a list of either, a path to a configuration file, or an engine."""


def build_engine(policies: PolicyLike, options: Mapping[str, Any]) -> tuple[Engine, str | None]:
    """Build an engine from the policies that `attach` takes; the bound of a file comes with it.

    Args:
        policies: What names them.
        options: A budget such as `speedup=2.0`, for the first policy that takes one, and options of
            the policy, where `policies` is a name.

    Returns:
        The engine, and the most that places inside the network may keep, where a configuration
        file says so.

    Raises:
        ConfigError: An option is unknown.
        InputError: There are options, and no name of a policy that they belong to.
        PolicyError: No policy takes the budget.
        RegistryError: A policy is not installed.

    Example:
        >>> engine, memory = build_engine([], {})
        >>> engine.explain(), memory
        ('no policies: every step is computed', None)
    """
    budget, own = take_budget(options)
    if own and (is_file(policies) or not isinstance(policies, str)):
        raise InputError(
            f"{', '.join(own)} belong to no policy that is named; they go with a name, as in "
            'attach(pipe, "name", option=value), or into the policies themselves'
        )
    if isinstance(policies, Engine):
        return (Engine(with_budget(policies.listed, budget)) if budget else policies), None
    if is_file(policies):
        config = load_run(policies)
        memory = config.memory if isinstance(config, RunConfig) else None
        return Engine(with_budget(config.policies, budget)), memory
    if isinstance(policies, str):
        (spec,) = place_budget([{policies: own}], budget)
        return Engine([build_policy(spec, where="attach")]), None
    if isinstance(policies, Policy):
        return Engine(with_budget([policies], budget)), None
    listed = place_budget(policies, budget) if budget and is_list(policies) else policies
    return Engine(build_policies(listed)), None


def is_file(policies: object) -> TypeGuard[str | Path]:
    """Whether policies are given as a configuration file."""
    return isinstance(policies, Path) or (
        isinstance(policies, str) and policies.endswith((".yaml", ".yml"))
    )


def is_list(policies: object) -> TypeGuard[Sequence[Any]]:
    """Whether policies are given as a list."""
    return isinstance(policies, Sequence) and not isinstance(policies, str)
