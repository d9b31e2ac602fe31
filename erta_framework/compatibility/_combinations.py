"""Every combination of given policies, built as engines, and which of them a driver can serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations as subsets
from itertools import product

from erta_framework.compatibility._roles import PLACES, Groups, Role
from erta_framework.errors import ErtaError
from erta_framework.plugins import Engine, Policy
from erta_framework.session import Seam

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
        groups: Policies by role and name, from `collect_specimens`.

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
                if find_conflict(chosen, self.broken) is not None:
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
            if find_conflict(chosen, found) is not None:
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
            reason = find_conflict(held, found) or ""
            made.append(Combination(chosen, self.engines.get(held), reason))
        return made

    def explain(self, reason: str, chosen: Chosen) -> str:
        """A reason with the names of the policies in place of their settings."""
        for role, name in chosen:
            reason = reason.replace(repr(self.groups[role][name]), name.partition(" ")[0])
        return reason


def find_conflict(chosen: Chosen, conflicts: Mapping[Chosen, str]) -> str | None:
    """The reason of a conflict that these policies hold; None without one."""
    return next((why for culprits, why in conflicts.items() if culprits <= chosen), None)
