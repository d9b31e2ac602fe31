"""Catalogues over entry points: what is installed, by name. Installed is not active."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from erta_framework.errors import RegistryError, suggest
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.plugins._policy import Policy

CORE = "erta-framework"
"""The distribution whose extras bring what its drivers and launchers import."""
FIRST_PARTY = frozenset({CORE, "erta-bench"})
"""Distributions of this project; no limit hides what they offer."""
LIMIT_VARIABLE = "ERTA_PLUGINS"
"""Environment variable: unset allows every distribution, `none` only our own, else a comma list."""


def read_limit() -> frozenset[str] | None:
    """Distributions that may be loaded beside our own, from `ERTA_PLUGINS`; None is no limit."""
    value = os.environ.get(LIMIT_VARIABLE)
    if value is None:
        return None
    names = {normalize_name(name) for name in value.split(",") if name.strip()}
    return frozenset(names - {"none"})


def normalize_name(name: str) -> str:
    """A distribution name in its comparable form."""
    return re.sub(r"[-_.]+", "-", name.strip().lower())


@dataclass(frozen=True, slots=True)
class Entry:
    """One catalogue entry, known from metadata alone (nothing is imported)."""

    name: str
    distribution: str
    version: str
    point: EntryPoint


class Catalogue:
    """What installed distributions offer under one entry-point group.

    Args:
        group: Entry-point group, such as `"erta_framework.policies"`.
        check: Refuses a loaded object by returning what is wrong with it, else None.
        only: Third-party distributions that may be loaded; None takes the limit from the
            environment variable `ERTA_PLUGINS`. An empty collection allows first-party code only.

    Example:
        >>> models().names()  # doctest: +SKIP
        ['shapes-wan']
    """

    def __init__(
        self,
        group: str,
        check: Callable[[object], str | None],
        only: Collection[str] | None = None,
    ) -> None:
        self.group = group
        self._check = check
        self._only = only

    def entries(self) -> list[Entry]:
        """Every entry of the allowed distributions, sorted by name."""
        return [entry for entry in self._installed() if self._allows(entry)]

    def hidden(self) -> list[Entry]:
        """The installed entries that the limit leaves out, sorted by name."""
        return [entry for entry in self._installed() if not self._allows(entry)]

    def _allows(self, entry: Entry) -> bool:
        only = read_limit() if self._only is None else {normalize_name(n) for n in self._only}
        return only is None or normalize_name(entry.distribution) in FIRST_PARTY | only

    def _installed(self) -> list[Entry]:
        found = []
        for point in entry_points(group=self.group):
            owner = point.dist.name if point.dist is not None else "unknown distribution"
            version = point.dist.version if point.dist is not None else "?"
            found.append(Entry(point.name, owner, version, point))
        unique = {(entry.name, entry.distribution, entry.point.value): entry for entry in found}
        return sorted(unique.values(), key=lambda entry: (entry.name, entry.distribution))

    def names(self) -> list[str]:
        """Names in the catalogue, without importing anything."""
        return sorted({entry.name for entry in self.entries()})

    @property
    def limit(self) -> str:
        """The limit on what may be loaded, in brackets, for messages; empty if there is none."""
        if self._only is not None:
            return f" (only {', '.join(self._only) or 'first-party code'} may be loaded)"
        return f" ({LIMIT_VARIABLE} limits what loads)" if read_limit() is not None else ""

    def load(self, name: str) -> Any:
        """Import one entry.

        Raises:
            RegistryError: Nobody or more than one distribution provides the name, the import
                failed, or the object is of the wrong type.
        """
        matches = [entry for entry in self.entries() if entry.name == name]
        if not matches:
            raise RegistryError(
                f"no installed distribution provides {name!r} in {self.group}{self.limit}; "
                + suggest(name, self.names())
            )
        if len(matches) > 1:
            owners = ", ".join(f"{m.distribution} {m.version} ({m.point.value})" for m in matches)
            raise RegistryError(
                f"{name!r} in {self.group} is provided by several distributions: {owners}; "
                f"uninstall one, or allow only one through {LIMIT_VARIABLE}"
            )
        entry = matches[0]
        who = f"{name!r} of {entry.distribution} {entry.version} ({entry.point.value})"
        try:
            loaded = entry.point.load()
        except Exception as error:
            raise RegistryError(
                f"{who} failed to import: {type(error).__name__}: {error}"
            ) from error
        problem = self._check(loaded)
        if problem is not None:
            raise RegistryError(f"{who} {problem}")
        return loaded


def load_with_extra(catalogue: Catalogue, name: str, extra: str, what: str) -> Any:
    """Import one entry; where one of ours misses a library, name the extra that brings it.

    Args:
        catalogue: Where to look.
        name: Name of the entry.
        extra: Extra of erta-framework.
        what: What the entry is, for the message, such as `"driver"`.

    Raises:
        MissingExtraError: What one of our own entries imports is not installed.
        RegistryError: No distribution provides it, or its import failed otherwise.
    """
    try:
        return catalogue.load(name)
    except RegistryError as error:
        cause = error.__cause__
        ours = any(e.name == name and e.distribution == CORE for e in catalogue.entries())
        if not ours or not isinstance(cause, ImportError) or isinstance(cause, MissingExtraError):
            raise
        raise MissingExtraError(
            f"the {what} {name!r} cannot be imported ({cause}); pip install "
            f'"erta-framework[{extra}]"'
        ) from cause


def _check_policy(loaded: object) -> str | None:
    if isinstance(loaded, type) and issubclass(loaded, Policy):
        return None
    return f"is {loaded!r}, not a subclass of erta_framework.Policy"


def _check_function(purpose: str) -> Callable[[object], str | None]:
    def check(loaded: object) -> str | None:
        return None if callable(loaded) else f"is {loaded!r}, not a function that {purpose}"

    return check


def policies(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of policies (`erta_framework.policies`)."""
    return Catalogue("erta_framework.policies", _check_policy, only)


def list_budgeted() -> list[str]:
    """Names of the installed policies that take a planned budget, for messages and the docs."""
    found = set()
    for entry in policies().entries():
        try:
            cls = entry.point.load()
        except Exception:  # it cannot be imported; `erta policies` says why
            continue
        if hasattr(cls, "with_calls") and any(field.name == "budget" for field in fields(cls)):
            found.add(entry.name)
    return sorted(found)


def find_default_policy() -> str:
    """Name of the policy that a command takes where none is named.

    It is the entry `policy` of the group `erta_framework.defaults`, of first-party distributions
    alone: installing a package changes no command.

    Raises:
        RegistryError: There is none.
    """
    defaults = Catalogue("erta_framework.defaults", _check_policy, only=())
    targets = {entry.point.value for entry in defaults.entries() if entry.name == "policy"}
    names = [entry.name for entry in policies(()).entries() if entry.point.value in targets]
    if len(names) != 1:
        raise RegistryError(f"no default policy ({defaults.group} gives {names}); name one")
    return names[0]


def models(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of bundled models (`erta_framework.models`): functions that load one."""
    return Catalogue("erta_framework.models", _check_function("returns a model"), only)


def drivers(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of drivers (`erta_framework.drivers`): functions that take a pipeline."""
    return Catalogue("erta_framework.drivers", _check_function("takes a pipeline"), only)


def commands(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of commands (`erta_framework.commands`): functions or Typer apps."""
    return Catalogue("erta_framework.commands", _check_function("typer can run"), only)


def benches(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of benchmarks (`erta_framework.benches`): functions that are commands."""
    return Catalogue("erta_framework.benches", _check_function("typer can run"), only)


def launchers(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of launchers (`erta_framework.launchers`): functions that return one."""
    return Catalogue("erta_framework.launchers", _check_function("returns a launcher"), only)
