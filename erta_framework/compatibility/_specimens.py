"""One policy or several of every installed class, ready to be combined."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from erta_framework.calibration import Profile
from erta_framework.compatibility._roles import PLACES, Groups, Role, find_role
from erta_framework.errors import ErtaError, PolicyError
from erta_framework.plugins import Catalogue, Engine, Policy, policies
from erta_framework.text import show_error

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"evenly": 5},
    {"calls": 5},
    {"budget": {"calls": 5}},
    {"steps": 2},
    {"threshold": 0.1},
)
"""Settings to make a policy with that has none of its own; the first that fit are taken."""


@dataclass(frozen=True, slots=True)
class Specimens:
    """One policy or several of every class in a catalogue, ready to be combined.

    Attributes:
        groups: By role and name; a name may carry the setting in which it differs.
        absent: Why a class is not among them.
    """

    groups: Groups
    absent: Mapping[str, str] = field(default_factory=dict)


def collect_specimens(
    calibrate: Callable[[Policy], Profile],
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    vary: Collection[Role] = (Role.WHAT, Role.CORRECTION),
    catalogue: Catalogue | None = None,
) -> Specimens:
    """Policies of every class of the catalogue that takes a place in a combination.

    Args:
        calibrate: Makes the profile of a profiler, such as `toy_profile`.
        settings: Settings of a policy by its name; otherwise the first of `SETTINGS` that fit,
            with a profile if they do not without.
        vary: Roles whose policies also stand in every other choice of a setting that has fixed
            choices, one setting changed at a time.
        catalogue: Which policies; those that are installed.

    Returns:
        The policies, and why others are absent.
    """
    found = catalogue if catalogue is not None else policies()
    groups: dict[Role, dict[str, Policy]] = {role: {} for role in PLACES}
    absent: dict[str, str] = {}
    for name in found.names():
        try:
            cls: type[Policy] = found.load(name)
            role = find_role(cls)
            if role not in groups:
                continue
            options = choose_settings(cls, calibrate, (settings or {}).get(name))
            made = {name: cls(**options)}
            variants = list(list_variants(cls)) if role in vary else []
        except Exception as error:  # a policy of others may raise anything
            absent[name] = describe_failure(error)
            continue
        if "latents" not in made[name].traits.serves:
            absent[name] = f"{made[name]!r} decides for tokens, and combinations are of latents"
            continue
        for label, changed in variants:
            try:
                policy = cls(**{**options, **changed})
                Engine([policy])
            except Exception as error:
                absent[f"{name} {label}"] = describe_failure(error)
            else:
                made[f"{name} {label}"] = policy
        groups[role].update(made)
    return Specimens(groups, absent)


def describe_failure(error: Exception) -> str:
    """What an error says, with its class where it is not one of ours."""
    return str(error) if isinstance(error, ErtaError) else show_error(error)


def choose_settings(
    cls: type[Policy],
    calibrate: Callable[[Policy], Profile],
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Settings that an engine accepts.

    Raises:
        ErtaError: None do; what the policy says of its defaults.
    """
    fields = {each.name for each in dataclasses.fields(cls)}
    ladder: Iterable[Mapping[str, Any]] = SETTINGS if given is None else [given]
    rungs = [dict(rung) for rung in ladder if fields >= set(rung)]
    found, problem = find_first_fit(cls, rungs)
    if found is None and "profile" in fields:
        # without settings, as `erta calibrate --policy NAME` does
        profiler = object.__new__(cls).calibrator()
        if profiler is not None:
            profile = calibrate(profiler)
            found, problem = find_first_fit(cls, [{**rung, "profile": profile} for rung in rungs])
    if found is None:
        raise problem or PolicyError(f"{cls.__name__} takes none of the settings {list(SETTINGS)}")
    return found


def find_first_fit(
    cls: type[Policy], rungs: Iterable[dict[str, Any]]
) -> tuple[dict[str, Any] | None, ErtaError | None]:
    """The first settings that an engine accepts, and what was wrong with the first refused."""
    problem: ErtaError | None = None
    for rung in rungs:
        try:
            Engine([cls(**rung)])
        except ErtaError as error:
            problem = problem or error
        except TypeError as error:
            problem = problem or PolicyError(f"{cls.__name__} cannot be made alone: {error}")
        else:
            return rung, problem
    return None, problem


def list_variants(cls: type[Policy]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The other choices of every setting with fixed choices, one at a time, with a label."""
    hints = typing.get_type_hints(cls)
    for each in dataclasses.fields(cls):
        members = [m for m in (hints[each.name], *typing.get_args(hints[each.name]))]
        for member in members:
            if typing.get_origin(member) is not typing.Literal:
                continue
            for choice in typing.get_args(member):
                if choice != each.default:
                    yield f"{each.name}={choice}", {each.name: choice}
