"""Which policies can stand beside which: worked out from what they declare, not from a list.

When to reuse, what stands in, how that is corrected and how far to integrate are separate parts. A
policy's part follows from the hooks that it implements; what it can be combined with follows from
building an engine of the combination and checking it against a driver.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations as subsets
from itertools import product
from typing import Any

from erta_framework.calibration import Profile
from erta_framework.errors import ErtaError, PolicyError
from erta_framework.plugins import HOOKS, PROJECT, Catalogue, Engine, Policy, hook_options, policies
from erta_framework.sampling import DDIM, FlowAdamsBashforth2, FlowEuler, offered
from erta_framework.session import TEXT, Seam


class Role(StrEnum):
    """What a policy does in a combination.

    `WHEN` answers `decide`, `WHAT` answers `forward` (or replaces computed outputs as well),
    `CORRECTION` wraps `forward`, `TIME` answers `adjust_interval`. `LIMIT` wraps `decide`,
    `OBSERVER` emits a profile and `RECIPE` stands for several policies: those three take no place
    in a combination.
    """

    WHEN = "when"
    WHAT = "what"
    CORRECTION = "correction"
    TIME = "time"
    LIMIT = "limit"
    OBSERVER = "observer"
    RECIPE = "recipe"


PLACES = (Role.WHEN, Role.CORRECTION, Role.WHAT, Role.TIME)
"""The roles of a combination in call order: a correction encloses whatever stands in."""

Groups = Mapping[Role, Mapping[str, Policy]]
"""Policies by role and name."""

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"evenly": 5},
    {"calls": 5},
    {"budget": {"calls": 5}},
    {"steps": 2},
    {"threshold": 0.1},
)
"""Settings to make a policy with that has none of its own; the first that fit are taken."""


def role_of(cls: type[Policy]) -> Role | None:
    """The role of a policy class, from its hooks; None for one that only watches steps.

    Example:
        >>> from erta_framework.testing import AlternateSteps
        >>> role_of(AlternateSteps)
        <Role.WHEN: 'when'>
    """
    if cls.parts is not Policy.parts:
        return Role.RECIPE
    found = {hook for hook in HOOKS if hasattr(getattr(cls, hook, None), f"{PROJECT}_impl")}
    wraps = {hook for hook in found if hook_options(object.__new__(cls), hook)["wrapper"]}
    if "on_session_end" in found:
        return Role.OBSERVER
    if "decide" in found:
        return Role.LIMIT if "decide" in wraps else Role.WHEN
    if "adjust_interval" in found:
        return Role.TIME
    if "forward" not in found:
        return None
    replaces = "forward" not in wraps or getattr(cls, "corrects_computed", False) is True
    return Role.WHAT if replaces else Role.CORRECTION


@dataclass(frozen=True, slots=True)
class Specimens:
    """One policy or several of every class in a catalogue, ready to be combined.

    Attributes:
        groups: By role and name; a name may carry the setting in which it differs.
        absent: Why a class is not among them.
    """

    groups: Groups
    absent: Mapping[str, str] = field(default_factory=dict)


def specimens(
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
            role = role_of(cls)
            if role not in groups:
                continue
            options = usable(cls, calibrate, (settings or {}).get(name))
        except ErtaError as error:
            absent[name] = str(error)
            continue
        groups[role][name] = cls(**options)
        for label, changed in variants(cls) if role in vary else ():
            try:
                policy = cls(**{**options, **changed})
                Engine([policy])
            except ErtaError as error:
                absent[f"{name} {label}"] = str(error)
            else:
                groups[role][f"{name} {label}"] = policy
    return Specimens(groups, absent)


def usable(
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
    found, problem = fitting(cls, rungs)
    if found is None and "profile" in fields:
        # asked without settings, as `erta calibrate --policy NAME` does
        profiler = object.__new__(cls).calibrator()
        if profiler is not None:
            profile = calibrate(profiler)
            found, problem = fitting(cls, [{**rung, "profile": profile} for rung in rungs])
    if found is None:
        raise problem or PolicyError(f"{cls.__name__} takes none of the settings {list(SETTINGS)}")
    return found


def fitting(
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


def variants(cls: type[Policy]) -> Iterator[tuple[str, dict[str, Any]]]:
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


# ----------------------------------------------------------------------------- combining
Chosen = frozenset[tuple[Role, str]]
"""Policies of a combination, by role and name."""


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """One choice of each role.

    Attributes:
        names: Names of the chosen policies by role; a role without one is left to core.
        engine: An engine of them in call order; None where they cannot be built together.
        reason: Why it is refused; empty if it is allowed.
    """

    names: Mapping[Role, str]
    engine: Engine | None
    reason: str = ""

    @property
    def allowed(self) -> bool:
        """Whether an engine of these policies can serve the driver."""
        return not self.reason

    def __str__(self) -> str:
        return " + ".join(self.names.values())


class Composer:
    """Every combination of the given policies, each built as an engine once.

    Args:
        groups: Policies by role and name, from `specimens`.

    Example:
        >>> from erta_framework.testing import AlternateSteps
        >>> composer = Composer({Role.WHEN: {"odd": AlternateSteps()}})
        >>> [str(one) for one in composer.combinations(frozenset())]
        ['odd']
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.engines: dict[Chosen, Engine] = {}
        self.broken: dict[Chosen, str] = {}
        for size in range(1, len(PLACES) + 1):
            for chosen in self._chosen(size):
                if contained(chosen, self.broken) is not None:
                    continue
                try:
                    self.engines[chosen] = Engine(self._listed(chosen))
                except ErtaError as error:
                    self.broken[chosen] = str(error)

    def _chosen(self, size: int) -> Iterator[Chosen]:
        for roles in subsets([role for role in PLACES if self.groups.get(role)], size):
            for names in product(*(self.groups[role] for role in roles)):
                yield frozenset(zip(roles, names, strict=True))

    def _listed(self, chosen: Chosen) -> list[Policy]:
        ordered = sorted(chosen, key=lambda one: PLACES.index(one[0]))
        return [self.groups[role][name] for role, name in ordered]

    def conflicts(
        self,
        capabilities: frozenset[str],
        *,
        driver: str = "this driver",
        seam: Seam = Seam.LATENT,
    ) -> dict[Chosen, str]:
        """The smallest sets of policies that cannot serve a driver together, with the reason.

        Every combination that holds none of them is allowed.

        Args:
            capabilities: What the driver offers, such as `solver.capabilities`.
            driver: Its name, for the reasons.
            seam: Where it answers.
        """
        found: dict[Chosen, str] = {}
        for chosen in sorted({*self.engines, *self.broken}, key=len):
            if contained(chosen, found) is not None:
                continue
            if chosen in self.broken:
                found[chosen] = self.broken[chosen]
                continue
            try:
                self.engines[chosen].check(capabilities, driver, seam)
            except ErtaError as error:
                found[chosen] = str(error)
        return found

    def combinations(
        self,
        capabilities: frozenset[str],
        *,
        driver: str = "this driver",
        seam: Seam = Seam.LATENT,
    ) -> list[Combination]:
        """Every rule for when to reuse with every choice, or none, of the other roles.

        Arguments as in `conflicts`. Refused combinations say why.
        """
        found = self.conflicts(capabilities, driver=driver, seam=seam)
        made = []
        optional = [[None, *self.groups.get(role, ())] for role in PLACES[1:]]
        for names in product(self.groups.get(Role.WHEN, ()), *optional):
            pairs = zip(PLACES, names, strict=True)
            chosen = {role: name for role, name in pairs if name is not None}
            held = frozenset(chosen.items())
            reason = contained(held, found) or ""
            made.append(Combination(chosen, self.engines.get(held), reason))
        return made

    def explain(self, reason: str, chosen: Chosen) -> str:
        """A reason with the names of the policies in place of their settings."""
        for role, name in chosen:
            reason = reason.replace(repr(self.groups[role][name]), name.partition(" ")[0])
        return reason


def contained(chosen: Chosen, conflicts: Mapping[Chosen, str]) -> str | None:
    """The reason of a conflict that these policies hold; None without one."""
    return next((why for culprits, why in conflicts.items() if culprits <= chosen), None)


# ------------------------------------------------------------------------------ overview
@dataclass(frozen=True, slots=True)
class Driver:
    """Something that policies are checked against.

    Attributes:
        name: Shown in tables.
        capabilities: What it offers.
        seam: Where it answers.
    """

    name: str
    capabilities: frozenset[str]
    seam: Seam = Seam.LATENT


OWN = (
    Driver("flow_euler", offered(FlowEuler())),
    Driver("flow_ab2", offered(FlowAdamsBashforth2())),
    Driver("ddim", offered(DDIM())),
)
"""The own solvers, in the own loop."""
TRUNK = Driver("trunk seam", FlowEuler().capabilities | TEXT, Seam.TRUNK)
"""A first-order flow solver where the block stack alone is skipped, in a pipeline."""


@dataclass(frozen=True, slots=True)
class Overview:
    """What the installed policies can be combined to, for several drivers.

    Attributes:
        composer: The combinations.
        absent: Why a policy is not among them.
        drivers: What they were checked against.
    """

    composer: Composer
    absent: Mapping[str, str]
    drivers: tuple[Driver, ...] = (*OWN, TRUNK)

    def conflicts(self, driver: Driver) -> dict[Chosen, str]:
        """The conflicts under one driver."""
        return self.composer.conflicts(driver.capabilities, driver=driver.name, seam=driver.seam)

    def rows(self) -> list[tuple[Role, str, list[bool]]]:
        """Role and name of every policy, and whether each driver can serve it."""
        found = [self.conflicts(driver) for driver in self.drivers]
        return [
            (role, name, [frozenset({(role, name)}) not in conflicts for conflicts in found])
            for role in (Role.WHEN, Role.WHAT, Role.CORRECTION, Role.TIME)
            for name in self.composer.groups[role]
        ]

    def refused(self) -> list[tuple[tuple[str, ...], list[str], str]]:
        """Policies that cannot stand together although each can alone: names, drivers, reason."""
        merged: dict[tuple[Chosen, str], list[str]] = {}
        for driver in self.drivers:
            for chosen, reason in self.conflicts(driver).items():
                if len(chosen) < 2:
                    continue
                text = self.composer.explain(reason, chosen)
                merged.setdefault((chosen, text), []).append(driver.name)
        ordered = []
        for (chosen, text), where in merged.items():
            names = [name for _, name in sorted(chosen, key=lambda one: PLACES.index(one[0]))]
            ordered.append((tuple(names), where, text))
        return sorted(ordered, key=lambda row: (row[0], row[2]))

    def counts(self, driver: Driver) -> tuple[int, int]:
        """How many combinations are allowed under a driver, of how many."""
        made = self.composer.combinations(driver.capabilities, seam=driver.seam)
        return sum(one.allowed for one in made), len(made)


def overview(
    calibrate: Callable[[Policy], Profile],
    drivers: tuple[Driver, ...] = (*OWN, TRUNK),
    *,
    vary: Collection[Role] = (),
) -> Overview:
    """The combinations of all installed policies; `calibrate` and `vary` as in `specimens`."""
    found = specimens(calibrate, vary=vary)
    return Overview(Composer(found.groups), found.absent, drivers)
