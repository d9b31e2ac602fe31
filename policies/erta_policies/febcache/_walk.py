"""`Walk`: what a calibration request has decided so far, and what it learned of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from erta_framework.modules import Action, Measurement, Parts, Place
from erta_policies.febcache._table import State

COUNTS = ("rows", "both", "one", "error")


@dataclass(slots=True, eq=False)
class Walk:
    """What a request has decided so far.

    Attributes:
        states: The state of each decided step.
        sums: Sums for each step; see the statistics of the profile.
        shares: Shares of a network call: attention, MLPs, both; empty before they are known.
    """

    states: dict[int, State] = field(default_factory=dict)
    sums: dict[str, dict[int, float]] = field(default_factory=lambda: {n: {} for n in COUNTS})
    shares: tuple[float, ...] = ()

    def learn_shares(self, call: Parts) -> Mapping[Place, Action]:
        """A plan in which everything runs; learns what the places cost."""
        if not self.shares and call.costs is not None:
            self.shares = find_shares(call, call.costs)
        return {}


def find_shares(call: Parts, costs: Measurement) -> tuple[float, ...]:
    """Shares of a network call: the attention, the MLPs, and both."""
    kinds = (("attention", "cross"), ("mlp",), ("attention", "cross", "mlp"))
    return tuple(
        1.0
        - costs.find_share(
            path
            for place in call.sites
            for path in place.modules
            if place.kind in own and path in costs.flops
        )
        for own in kinds
    )
