"""`GatedNetwork`: a network call of a driver, computed through the gates."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from erta_framework.modules._module_run import ModuleRun, check_planned
from erta_framework.session import Network, Site, TrialPlan


class GatedNetwork:
    """A network call of a driver, whose computations go through the gates.

    Args:
        call: The network call.
        run: The request's calls through the gates.
        name: Name of the network.
        site: Network and branch.
        x: Its latents, `[B, C, ...]`.
    """

    def __init__(self, call: Network, run: ModuleRun, name: str, site: Site, x: Tensor) -> None:
        self._call, self._run, self._name, self._site, self._x = call, run, name, site, x

    @property
    def undivided(self) -> str:
        """Why the network cannot run on part of the batch; empty if it can."""
        whole = self._call.undivided
        return whole or self._run.find_undivided(self._site, self._x.shape[0])

    def run(self) -> Tensor:
        """The prediction, through the gates."""
        output: Tensor = self._run.run(self._name, self._site, self._x, self._call.run)
        return output

    def run_rows(self, rows: Tensor) -> Tensor:
        """The prediction for some samples, through the gates."""
        output: Tensor = self._run.run_rows(
            self._name, self._site, self._x, rows, lambda: self._call.run_rows(rows)
        )
        return output

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """A trial: the gates are at rest."""
        return self._call.run_at(x, timestep)

    def run_planned(self, plan: TrialPlan, x: Tensor, timestep: float | None) -> Tensor:
        """A trial through the gates, with a plan of its own; nothing is kept.

        Raises:
            CapabilityError: The latents have another shape than those of the call.
        """
        check_planned(x, self._x, self._name)
        output: Tensor = self._run.run_planned(
            self._name, self._site, self._x, plan, lambda: self._call.run_at(x, timestep)
        )
        return output

    def offers(self, name: str) -> bool:
        """As the call."""
        return self._call.offers(name)

    def signal(self, name: str) -> Tensor:
        """As the call; the gates are at rest."""
        return self._call.signal(name)

    def keep(self, x: Tensor, output: Tensor) -> Mapping[str, Tensor] | None:
        """As the call."""
        return self._call.keep(x, output)
