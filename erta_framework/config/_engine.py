"""An engine from whatever names policies: a name, a file, a list, or policies themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erta_framework.config._build import build_policies, build_policy
from erta_framework.config._load import load_run
from erta_framework.config._run_config import RunConfig
from erta_framework.plugins import Engine, Policy

PolicyLike = str | Path | Policy | Engine | Sequence[Any]
"""A policy's name, a policy, a list of either, a path to a configuration file, or an engine."""


def build_engine(policies: PolicyLike, options: dict[str, Any]) -> tuple[Engine, str | None]:
    """Build an engine from the policies that `attach` takes; the bound of a file comes with it.

    Args:
        policies: What names them.
        options: Options of the policy, where `policies` is a name.

    Returns:
        The engine, and the most that places inside the network may keep, where a configuration
        file says so.

    Raises:
        ConfigError: An option is unknown.
        RegistryError: A policy is not installed.

    Example:
        >>> engine, memory = build_engine([], {})
        >>> engine.explain(), memory
        ('no policies: every step is computed', None)
    """
    if isinstance(policies, Engine):
        return policies, None
    if isinstance(policies, Policy):
        return Engine([policies]), None
    if isinstance(policies, Path) or (
        isinstance(policies, str) and policies.endswith((".yaml", ".yml"))
    ):
        config = load_run(policies)
        memory = config.memory if isinstance(config, RunConfig) else None
        return Engine(config.policies), memory
    if isinstance(policies, str):
        return Engine([build_policy({policies: options}, where="attach")]), None
    return Engine(build_policies(policies)), None
