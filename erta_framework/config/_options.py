"""A policy back to the plain values that would configure it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erta_framework.calibration import Profile
from erta_framework.errors import ConfigError
from erta_framework.plugins import Policy
from erta_framework.plugins import policies as policy_catalogue


def options_of(policy: Policy) -> dict[str, Any]:
    """The options that would configure this policy, as plain values.

    Raises:
        ConfigError: A field holds an object that no configuration file can hold.
    """
    return {
        f.name: plain_value(getattr(policy, f.name), f.name) for f in dataclasses.fields(policy)
    }


def plain_value(value: Any, where: str) -> Any:
    """A field value as YAML could hold it; nested policies become `{name: options}`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain_value(item, where) for item in value]
    if isinstance(value, Policy):
        return {registered_name(type(value)): options_of(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_value(item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, Profile | type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {k: plain_value(v, where) for k, v in given.items() if v is not None}
    raise ConfigError(
        f"{where} holds {type(value).__name__}, which no configuration file can hold; "
        "give a file path instead"
    )


def registered_name(cls: type[Policy]) -> str:
    """The name under which a policy class is in the catalogue.

    Raises:
        ConfigError: It is not registered.
        RegistryError: The entry that leads to it does not load.
    """
    target = f"{cls.__module__}:{cls.__qualname__}"
    catalogue = policy_catalogue()
    entries = catalogue.entries()
    for entry in entries:
        if entry.point.value == target:
            return entry.name
    for entry in entries:
        # a package may offer what a module of it defines; nobody else's code is imported to look
        module, _, name = entry.point.value.partition(":")
        same = module.partition(".")[0] == cls.__module__.partition(".")[0]
        if same and name == cls.__qualname__ and catalogue.load(entry.name) is cls:
            return entry.name
    raise ConfigError(f"{target} is not registered under erta_framework.policies")
