"""The overview of what installed policies can be combined to, for several drivers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from erta_framework.calibration import Profile
from erta_framework.compatibility._combinations import Chosen, Composer
from erta_framework.compatibility._roles import PLACES, Role
from erta_framework.compatibility._specimens import collect_specimens
from erta_framework.plugins import Policy
from erta_framework.sampling import DDIM, FlowAdamsBashforth2, FlowEuler, list_capabilities
from erta_framework.session import TEXT, Seam


@dataclass(frozen=True, slots=True)
class DriverOffer:
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
    DriverOffer("flow_euler", list_capabilities(FlowEuler())),
    DriverOffer("flow_ab2", list_capabilities(FlowAdamsBashforth2())),
    DriverOffer("ddim", list_capabilities(DDIM())),
)
"""The own solvers, in the own loop."""
TRUNK = DriverOffer("trunk seam", FlowEuler().capabilities | TEXT, Seam.TRUNK)
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
    drivers: tuple[DriverOffer, ...] = (*OWN, TRUNK)

    def conflicts(self, driver: DriverOffer) -> dict[Chosen, str]:
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

    def counts(self, driver: DriverOffer) -> tuple[int, int]:
        """How many combinations are allowed under a driver, of how many."""
        made = self.composer.combinations(driver.capabilities, seam=driver.seam)
        return sum(one.allowed for one in made), len(made)


def make_overview(
    calibrate: Callable[[Policy], Profile],
    drivers: tuple[DriverOffer, ...] = (*OWN, TRUNK),
    *,
    vary: Collection[Role] = (),
) -> Overview:
    """The combinations of all installed policies; arguments as in `collect_specimens`."""
    found = collect_specimens(calibrate, vary=vary)
    return Overview(Composer(found.groups), found.absent, drivers)
