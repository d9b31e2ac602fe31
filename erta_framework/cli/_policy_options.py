"""`--policy`, `--profile`, `--calls` and `--speedup`: the policies of a run without a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from erta_framework.cli._models import find_profile
from erta_framework.cli._options import unset
from erta_framework.config import (
    MaskedRunConfig,
    RunConfig,
    build_policies,
    options_from,
    options_of,
    registered_name,
)
from erta_framework.errors import ConfigError, ErtaError, InputError
from erta_framework.plugins import find_default_policy, list_budgeted
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.text import show_value

POLICIES = "Policies"
Spec = dict[str, Any]
"""`{name: options}`."""
Config = TypeVar("Config", bound=RunConfig | MaskedRunConfig)


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Policies, and what they are given, instead of those of the configuration."""

    policy: Annotated[
        list[str] | None,
        unset(
            'A policy instead of those of the configuration: a name, or "{name: {option: value}}"; '
            "repeat for more.",
            panel=POLICIES,
        ),
    ] = None
    profile: Annotated[
        Path | None,
        unset(
            "Profile for the policies that read one: a file, or the name of a bundled model.",
            panel=POLICIES,
        ),
    ] = None
    calls: Annotated[
        int | None, unset("Budget in network calls of each branch.", panel=POLICIES, min=1)
    ] = None
    speedup: Annotated[
        float | None, unset("Budget as steps over network calls.", panel=POLICIES, min=1.0)
    ] = None

    @property
    def budget(self) -> dict[str, float] | None:
        """The budget that is asked for, or None.

        Raises:
            InputError: Both `--calls` and `--speedup`.
        """
        given = {"calls": self.calls, "speedup": self.speedup}
        found = {name: value for name, value in given.items() if value is not None}
        if len(found) > 1:
            raise InputError("got --calls and --speedup; give one of them")
        return found or None

    def as_arguments(self) -> list[str]:
        """The options as they were written."""
        found = [word for text in self.policy or () for word in ("--policy", text)]
        for name in ("profile", "calls", "speedup"):
            value = getattr(self, name)
            found += [] if value is None else [f"--{name}", str(value)]
        return found

    def apply(self, config: Config) -> Config:
        """The configuration with these policies.

        With a profile or a budget alone, they go to the policies of the configuration, or to the
        default policy where it has none.

        Raises:
            InputError: No policy takes the profile or the budget.
            ConfigError: A policy cannot be read.
        """
        specs = [one for text in self.policy or () for one in read_policies(text)]
        if not specs and self.profile is None and self.budget is None:
            return config
        if not specs:
            specs = [{registered_name(type(one)): options_of(one)} for one in config.policies]
        specs = specs or [{find_default_policy(): {}}]
        return replace(config, policies=build_policies(self.complete(specs)))

    def complete(self, specs: Sequence[Spec]) -> list[Spec]:
        """Policies with the profile and the budget in their options.

        Raises:
            InputError: None of them takes one.
        """
        specs = [{name: dict(options) for name, options in spec.items()} for spec in specs]
        if self.profile is not None:
            give_profile(specs, find_profile(self.profile), replaced=not self.policy)
        if self.budget is not None:
            give_budget(specs, self.budget, replaced=not self.policy)
        return specs


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


def give_budget(specs: Sequence[Spec], budget: Mapping[str, float], replaced: bool) -> None:
    """Give the budget to the first policy that takes one.

    Args:
        specs: The policies; changed in place.
        budget: `calls` or `speedup`.
        replaced: Whether it replaces a budget that the policy has.

    Raises:
        InputError: None of them takes one, or the one that does has another.
    """
    ((kind, value),) = budget.items()
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
                f"--{kind} {value:g}: {name} has {others[0]} {options[others[0]]} already; give one"
            )
        for other in others:
            del options[other]
        options["budget"] = {kind: value}
        return
    raise InputError(
        f"--{kind} {value:g}: none of these policies takes a budget as it is given "
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
