"""Policies as `{name: options}`: read from `--policy`, and given a profile or a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from erta_framework.config import build_policies, options_from
from erta_framework.errors import ConfigError, ErtaError, InputError
from erta_framework.plugins import list_budgeted
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.text import show_value

Spec = dict[str, Any]
"""`{name: options}`."""
Budget = Mapping[str, float | str]
"""`{kind: value}`, of `calls`, `speedup` or `quality`."""


def read_policies(text: str) -> list[Spec]:
    """What one `--policy` says: a name, `{name: {option: value}}`, or a list of them.

    Raises:
        ConfigError: It is none of these.

    Example:
        >>> read_policies("{mine: {period: 3}}")
        [{'mine': {'period': 3}}]
    """
    if text.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"--policy {text} is a file; give a configuration without --policy, as an argument"
        )
    found = options_from("--policy", [f"policy={text}"]).get("policy")
    return [as_spec(one, text) for one in (found if isinstance(found, list) else [found])]


def as_spec(value: object, text: str) -> Spec:
    """One policy as `{name: options}`.

    Raises:
        ConfigError: It is neither a name nor such a mapping.
    """
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, options),) = value.items()
        if options is None or isinstance(options, Mapping):
            return {str(name): dict(options or {})}
    raise ConfigError(
        f"--policy {show_value(text)} is no policy; write a name, or "
        '"{name: {option: value}}"; `erta policies` lists them'
    )


def list_options(name: str) -> set[str]:
    """Names of the options of a policy.

    Raises:
        RegistryError: It is not installed.
    """
    return {field.name for field in fields(policy_catalogue().load(name))}


def list_required(name: str) -> set[str]:
    """Names of the options without which a policy cannot be built.

    Raises:
        RegistryError: It is not installed.
    """
    return {
        field.name
        for field in fields(policy_catalogue().load(name))
        if field.default is MISSING and field.default_factory is MISSING
    }


def give_profile(specs: Sequence[Spec], file: Path, replaced: bool) -> None:
    """Give the file to every policy that reads a profile.

    Args:
        specs: The policies; changed in place.
        file: The profile.
        replaced: Whether it replaces a profile that a policy has.

    Raises:
        InputError: None of them reads one.
    """
    readers = [spec for spec in specs if "profile" in list_options(*spec)]
    if not readers:
        raise InputError(
            f"--profile {file}: none of these policies reads a profile ({name_all(specs)}); leave "
            "it out"
        )
    for spec in readers:
        for options in spec.values():
            if replaced or options.get("profile") is None:
                options["profile"] = str(file)


def give_budget(specs: Sequence[Spec], budget: Budget, replaced: bool) -> None:
    """Give the budget to the first policy that takes one.

    Args:
        specs: The policies; changed in place.
        budget: `calls`, `speedup` or `quality`.
        replaced: Whether it replaces a budget that the policy has.

    Raises:
        InputError: None of them takes one, or the one that does has another.
    """
    ((kind, value),) = budget.items()
    asked = f"--{kind} {value if isinstance(value, str) else f'{value:g}'}"
    for spec in specs:
        ((name, options),) = spec.items()
        known = list_options(name)
        if "budget" not in known:
            continue
        others = [k for k in ("budget", "calls", "threshold") if options.get(k) is not None]
        if replaced and not others and is_complete(spec):
            continue  # its own options say its schedule
        if others and not replaced:
            raise InputError(
                f"{asked}: {name} has {others[0]} {options[others[0]]} already; give one"
            )
        for other in others:
            del options[other]
        options["budget"] = {kind: value}
        return
    raise InputError(
        f"{asked}: none of these policies takes a budget as it is given "
        f"({name_all(specs)}); those that do are {', '.join(list_budgeted())}; others are set by "
        "their own options"
    )


def is_complete(spec: Spec) -> bool:
    """Whether a policy can be built with these options."""
    try:
        build_policies([spec])
    except ErtaError:
        return False
    return True


def name_all(specs: Sequence[Spec]) -> str:
    """The names of policies, for a message."""
    return ", ".join(name for spec in specs for name in spec)
