"""Catalogues over entry points: what is installed, by name. Installed is not active."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from erta_framework.errors import RegistryError, suggestion
from erta_framework.plugins._policy import Policy
from erta_framework.sampling.guidance import Guidance
from erta_framework.sampling.solvers import Solver

FIRST_PARTY = "erta-framework"
LIMIT_VARIABLE = "ERTA_PLUGINS"
"""Environment variable: unset allows every distribution, `none` only our own, else a comma list."""


def third_party_limit() -> frozenset[str] | None:
    """Distributions that may be loaded beside our own, from `ERTA_PLUGINS`; None is no limit."""
    value = os.environ.get(LIMIT_VARIABLE)
    if value is None:
        return None
    names = {normalized(name) for name in value.split(",") if name.strip()}
    return frozenset(names - {"none"})


def normalized(name: str) -> str:
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
        >>> "ertacache" in policies().names()
        True
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
        only = third_party_limit() if self._only is None else {normalized(n) for n in self._only}
        found = []
        for point in entry_points(group=self.group):
            owner = point.dist.name if point.dist is not None else "unknown distribution"
            if only is None or normalized(owner) in {FIRST_PARTY, *only}:
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
        return f" ({LIMIT_VARIABLE} limits what loads)" if third_party_limit() is not None else ""

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
                + suggestion(name, self.names())
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


def _policy_problem(loaded: object) -> str | None:
    if isinstance(loaded, type) and issubclass(loaded, Policy):
        return None
    return f"is {loaded!r}, not a subclass of erta_framework.Policy"


def _part_problem(loaded: object, protocol: type) -> str | None:
    """What is wrong with a class of a part, which the configuration makes by its fields."""
    where = f"{protocol.__module__.partition('._')[0]}.{protocol.__name__}"
    if not isinstance(loaded, type) or not is_dataclass(loaded):
        return f"is {loaded!r}, not a dataclass that offers what {where} describes"
    wanted = sorted(name for name in vars(protocol) if not name.startswith("_"))
    fields_held = {field.name for field in fields(loaded)}
    missing = [name for name in wanted if not hasattr(loaded, name) and name not in fields_held]
    if missing:
        return f"is {loaded!r}, which lacks {', '.join(missing)} of {where}"
    return None


def _solver_problem(loaded: object) -> str | None:
    return _part_problem(loaded, Solver)


def _guidance_problem(loaded: object) -> str | None:
    return _part_problem(loaded, Guidance)


def _model_problem(loaded: object) -> str | None:
    return None if callable(loaded) else f"is {loaded!r}, not a function that returns a model"


def _driver_problem(loaded: object) -> str | None:
    return None if callable(loaded) else f"is {loaded!r}, not a function that takes a pipeline"


def _bench_problem(loaded: object) -> str | None:
    return None if callable(loaded) else f"is {loaded!r}, not a function that typer can run"


def _launcher_problem(loaded: object) -> str | None:
    return None if callable(loaded) else f"is {loaded!r}, not a function that returns a launcher"


def policies(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of policies (`erta_framework.policies`)."""
    return Catalogue("erta_framework.policies", _policy_problem, only)


def budgeted() -> list[str]:
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


def solvers(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of solvers (`erta_framework.solvers`): dataclasses that offer `Solver`."""
    return Catalogue("erta_framework.solvers", _solver_problem, only)


def guidance(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of guidance rules (`erta_framework.guidance`): they offer `Guidance`."""
    return Catalogue("erta_framework.guidance", _guidance_problem, only)


def models(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of bundled models (`erta_framework.models`): functions that load one."""
    return Catalogue("erta_framework.models", _model_problem, only)


def drivers(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of drivers (`erta_framework.drivers`): functions that take a pipeline."""
    return Catalogue("erta_framework.drivers", _driver_problem, only)


def benches(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of benchmarks (`erta_framework.benches`): functions that are commands."""
    return Catalogue("erta_framework.benches", _bench_problem, only)


def launchers(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of launchers (`erta_framework.launchers`): functions that return one."""
    return Catalogue("erta_framework.launchers", _launcher_problem, only)
