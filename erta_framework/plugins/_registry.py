"""Catalogues over entry points: what is installed, by name. Installed is not active."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint
from typing import Any

from erta_framework.errors import RegistryError, suggest
from erta_framework.optional_dependencies import MissingExtraError, find_extra
from erta_framework.plugins._interrupts import is_from_keyboard
from erta_framework.plugins._own import CORE, HOME, list_offers, normalize_name
from erta_framework.plugins._policy import Policy
from erta_framework.text import escape_line, show_error, show_value

log = logging.getLogger(__name__)
LIMIT_VARIABLE = "ERTA_PLUGINS"
"""Environment variable: unset allows every distribution, `none` only our own, else a comma list."""


def read_limit() -> frozenset[str] | None:
    """Distributions that may be loaded beside our own, from `ERTA_PLUGINS`; None is no limit."""
    value = os.environ.get(LIMIT_VARIABLE)
    if value is None:
        return None
    names = {normalize_name(name) for name in value.split(",") if name.strip()}
    return frozenset(names - {"none"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One catalogue entry, known from metadata alone (nothing is imported).

    Attributes:
        name: Its name in the catalogue.
        distribution: Who offers it.
        version: Version of the distribution.
        point: Where its code is.
        own: Whether it is of this project, as the files of the distribution show.
    """

    name: str
    distribution: str
    version: str
    point: EntryPoint
    own: bool = False

    def __str__(self) -> str:
        return f"{show_value(self.name)} of {self.origin}"

    @property
    def origin(self) -> str:
        """Distribution, version and place of the code, for messages."""
        return escape_line(f"{self.distribution} {self.version} ({self.point.value})")


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
        if only is None or entry.own:
            return True
        name = normalize_name(entry.distribution)
        return name in only and name != CORE  # what takes our name is not meant by it

    def _installed(self) -> list[Entry]:
        found = {
            (point.name, offer.own, offer.distribution, point.value): Entry(
                point.name, offer.distribution, offer.version, point, offer.own
            )
            for offer in list_offers(self.group)
            for point in offer.points
        }
        return [found[key] for key in sorted(found)]

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
                f"no installed distribution provides {show_value(name)} in "
                f"{self.group}{self.limit}; {suggest(name, self.names())}{self._listed_by()}"
            )
        if len(matches) > 1:
            owners = ", ".join(match.origin for match in matches)
            raise RegistryError(
                f"{show_value(name)} in {self.group} is provided by several distributions: "
                f"{owners}; uninstall one, or allow only one through {LIMIT_VARIABLE}"
            )
        return self._import(matches[0])

    def _listed_by(self) -> str:
        """The command that lists them, for a message."""
        return "; `erta policies` lists all" if self.group == "erta_framework.policies" else ""

    def _import(self, entry: Entry) -> Any:
        log.debug("importing %s", entry)
        try:
            loaded = entry.point.load()
            problem = self._check(loaded)
        # BaseException: a plugin that exits, or raises what pytest does, is a broken plugin
        except BaseException as error:
            if is_from_keyboard(error):
                error.add_note(f"interrupted while importing {entry}")
                raise
            missing = error.name if isinstance(error, ModuleNotFoundError) and entry.own else None
            extra = None if missing is None else find_extra(missing, prefer=entry.name)
            if extra is not None:
                top = str(missing).partition(".")[0]
                raise RegistryError(
                    f"{show_value(entry.name)} needs {top}, which is not installed; "
                    f'pip install "erta-framework[{extra}]"'
                ) from error
            raise RegistryError(f"{entry} failed to import: {show_error(error)}") from error
        if problem is not None:
            raise RegistryError(f"{entry} {problem}")
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
        ours = any(entry.name == name and entry.own for entry in catalogue.entries())
        if not ours or not isinstance(cause, ImportError) or isinstance(cause, MissingExtraError):
            raise
        raise MissingExtraError(
            f"the {what} {name!r} cannot be imported ({cause}); pip install "
            f'"erta-framework[{extra}]"'
        ) from cause


def _check_policy(loaded: object) -> str | None:
    if isinstance(loaded, type) and issubclass(loaded, Policy):
        return None
    return f"is {show_value(loaded)}, not a subclass of erta_framework.Policy"


def check_function(purpose: str) -> Callable[[object], str | None]:
    def check(loaded: object) -> str | None:
        if callable(loaded):
            return None
        return f"is {show_value(loaded)}, not a function that {purpose}"

    return check


def policies(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of policies (`erta_framework.policies`)."""
    return Catalogue("erta_framework.policies", _check_policy, only)


def list_budgeted(*, exact: bool = False) -> list[str]:
    """Names of this project's policies that take a planned budget, for messages and the docs.

    Those of others are left out: their code is not imported to word an error.

    Args:
        exact: Only those that make exactly as many network calls as they are asked for.
    """
    own, found = policies(only=()), []
    for name in own.names():
        try:
            cls = own.load(name)
        except RegistryError:  # it cannot be imported; `erta policies` says why
            continue
        budgeted = any(field.name == "budget" for field in fields(cls))
        if not (budgeted and hasattr(cls, "with_calls")):
            continue
        if getattr(cls, "exact", False) or not exact:
            found.append(name)
    return found


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
        raise RegistryError(
            f"no default policy ({defaults.group} gives {names}, from the distribution that "
            f"installed {HOME}); name one, or install it again"
        )
    return names[0]


def models(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of bundled models (`erta_framework.models`): functions that load one."""
    return Catalogue("erta_framework.models", check_function("returns a model"), only)


def drivers(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of drivers (`erta_framework.drivers`): functions that take a pipeline."""
    return Catalogue("erta_framework.drivers", check_function("takes a pipeline"), only)


def commands(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of commands (`erta_framework.commands`): functions or Typer apps."""
    return Catalogue("erta_framework.commands", check_function("typer can run"), only)


def benches(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of benchmarks (`erta_framework.benches`): functions that are commands."""
    return Catalogue("erta_framework.benches", check_function("typer can run"), only)


def launchers(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of launchers (`erta_framework.launchers`): functions that return one."""
    return Catalogue("erta_framework.launchers", check_function("returns a launcher"), only)
