"""What `erta compare` compares: configurations and policies, each under a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erta_framework.budgets import forecast
from erta_framework.calibration import require_profiler
from erta_framework.cli._calibrate import find_calibrator, make_blank_policy, require_seam
from erta_framework.cli._models import find_profile
from erta_framework.cli._policy_options import PolicyOptions
from erta_framework.cli._policy_specs import (
    Spec,
    give_budget,
    give_profile,
    list_options,
    list_required,
    name_all,
    read_policies,
)
from erta_framework.cli._settings import is_file
from erta_framework.config import (
    RunConfig,
    build_policies,
    load_config,
    options_of,
    registered_name,
)
from erta_framework.errors import ErtaError, InputError, MissingProfileError
from erta_framework.plugins import Policy, Profiler, find_default_policy
from erta_framework.session import Seam

LONGEST = 40
"""Characters of a name; a longer one is cut down to the names of its policies."""
SHARED = ("model", "guidance", "sigmas", "seam", "precision", "memory", "accelerator", "devices")
"""Keys in which configurations that are compared must agree."""

MakeProfile = Callable[[str, Profiler], Path]
"""Calibrates with a profiler; takes the policy's name too, and gives the file."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to compare.

    Attributes:
        name: Its name in the report.
        config: Its configuration; that of the options for a `--policy`.
        specs: Its policies as `{name: options}`.
    """

    name: str
    config: RunConfig
    specs: tuple[Spec, ...]

    def build(self, make_profile: MakeProfile, num_steps: int) -> tuple[Policy, ...]:
        """Its policies, with a profile made for each that needs one and has none.

        Raises:
            ConfigError: An option is unknown or missing.
            CapabilityError: Its profiler does not observe the seam.
        """
        made = []
        for spec in self.specs:
            ((name, options),) = spec.items()
            if needs_profile(spec, num_steps):
                asked = find_calibrator(make_blank_policy(name))
                if asked is not None:
                    profiler = require_profiler(asked)
                    require_seam(profiler, Seam(self.config.seam))
                    options = {**options, "profile": str(make_profile(name, profiler))}
            made.append({name: options})
        return build_policies(made)


def list_candidates(
    settings: Sequence[str],
    options: PolicyOptions,
    allow_env: bool,
    complete: Callable[[RunConfig], RunConfig],
) -> tuple[RunConfig, list[Candidate]]:
    """The shared configuration and the candidates, in the order in which they are given.

    Args:
        settings: Files and `key=value` overrides.
        options: Further policies, and a profile or budget for all that take one.
        allow_env: Whether files may read environment variables.
        complete: Adds what other options set to a configuration.

    Raises:
        InputError: There are none, two files differ in what they must share, or no candidate takes
            the profile or the budget.
    """
    files = [item for item in settings if is_file(item)]
    overrides = [item for item in settings if not is_file(item)]
    configs = [complete(load_config(file, overrides, allow_env=allow_env)) for file in files]
    shared = configs[0] if configs else complete(load_config(None, overrides))
    require_same(files, configs)
    found = [
        (Path(file).stem, config, [as_spec_of(policy) for policy in config.policies])
        for file, config in zip(files, configs, strict=True)
    ]
    if shared.policies and not files:
        found.append(("", shared, [as_spec_of(policy) for policy in shared.policies]))
    for text in options.policy or ():
        found.append(("", shared, read_policies(text)))
    if not found and (options.profile is not None or options.budget is not None):
        found.append(("", shared, [{find_default_policy(): {}}]))
    if not found:
        raise InputError(
            "nothing to compare; give configuration files, or a policy as "
            '--policy "{name: {option: value}}"; `erta policies` lists them'
        )
    share_options([specs for _, _, specs in found], options)
    names = name_apart([name or describe_policies(specs) for name, _, specs in found])
    return shared, [
        Candidate(name, config, tuple(specs))
        for name, (_, config, specs) in zip(names, found, strict=True)
    ]


def as_spec_of(policy: Policy) -> Spec:
    """A policy as `{name: options}`."""
    return {registered_name(type(policy)): options_of(policy)}


def require_same(files: Sequence[str], configs: Sequence[RunConfig]) -> None:
    """Refuse files that differ in what a comparison shares.

    Raises:
        InputError: Names the key and both values.
    """
    for file, config in zip(files[1:], configs[1:], strict=True):
        for key in SHARED:
            first, other = repr(getattr(configs[0], key)), repr(getattr(config, key))
            if first != other:
                raise InputError(
                    f"{key} is {first} in {files[0]} and {other} in {file}; compare under one "
                    f"{key}, such as with {key}=... behind the files"
                )


def share_options(found: Iterable[list[Spec]], options: PolicyOptions) -> None:
    """Give the profile and the budget to every candidate that takes one.

    Raises:
        InputError: None of them does.
    """
    found = list(found)
    gives: list[Callable[[list[Spec]], None]] = []
    if options.profile is not None:
        file = find_profile(options.profile)
        gives.append(lambda specs: give_profile(specs, file, replaced=False))
    budget = options.budget
    if budget is not None:
        gives.append(lambda specs: give_budget(specs, budget, replaced=True))
    for give in gives:
        refused: list[InputError] = []
        for specs in found:
            try:
                give(specs)
            except InputError as error:
                refused.append(error)
        if len(refused) == len(found):
            raise refused[0]


def needs_profile(spec: Spec, num_steps: int) -> bool:
    """Whether a policy with these options still has to be given a profile.

    It is built, and asked for its schedule if it plans ahead. A policy that reads its profile only
    while it samples says so then.
    """
    ((name, options),) = spec.items()
    if "profile" not in list_options(name) or options.get("profile") is not None:
        return False
    if "profile" in list_required(name):
        return True
    try:
        forecast(build_policies([spec]), num_steps)
    except MissingProfileError:
        return True
    except ErtaError:  # of another kind, which building it will say
        return False
    return False


def describe_policies(specs: Sequence[Spec]) -> str:
    """A short name for policies, from their names and options.

    Example:
        >>> describe_policies([{"mine": {"period": 3}}])
        'mine period=3'
    """
    texts = []
    for spec in specs:
        for name, options in spec.items():
            shown = {k: v for k, v in options.items() if k != "profile" and v is not None}
            texts.append(" ".join([name, *map(show_option, shown.items())]))
    whole = " + ".join(texts)
    return whole if len(whole) <= LONGEST else name_all(specs)


def show_option(item: tuple[str, Any]) -> str:
    """An option as `name=value`; of a budget, what it is in."""
    name, value = item
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, value),) = value.items()
    return f"{name}={value}"


def name_apart(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that occur more than once.

    Example:
        >>> name_apart(["a", "b", "a"])
        ['a', 'b', 'a 2']
    """
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return found
