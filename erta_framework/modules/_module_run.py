"""`ModuleRun`: the network calls of one request that go through the gates of a seam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_framework.modules._cells import Cells, Shape
from erta_framework.modules._costs import Measurement
from erta_framework.modules._gated_call import GatedCall
from erta_framework.modules._gates import Gates
from erta_framework.modules._memory import check_memory, count_state_bytes
from erta_framework.modules._opened import measure_run, opened
from erta_framework.modules._owners import Owner
from erta_framework.modules._seam import ModuleSeam
from erta_framework.session import Session, Site, TrialPlan


class ModuleRun:
    """The network calls of one request through the gates; what they keep goes with the session.

    Args:
        seam: The gates.
        session: The session of the request.
    """

    def __init__(self, seam: ModuleSeam, session: Session) -> None:
        self.seam, self.session = seam, session
        self.cells = Cells()
        self._never: dict[str, dict[str, None]] = {}
        self._costs: dict[tuple[str, Shape], Measurement] = {}
        self._needed: dict[Site, int] = {}
        self._calls: dict[Site, tuple[Shape, GatedCall]] = {}
        session.hold(self)

    def run(self, name: str, site: Site, x: Tensor, network: Callable[[], Any]) -> Any:
        """Run a network on the whole batch, through its gates.

        Args:
            name: Name of the network.
            site: Network and branch, for what is kept.
            x: Its latents, `[B, C, ...]`.
            network: Runs it.

        Raises:
            CapabilityError: The places would keep more than is allowed; says how much that is.
        """
        return self._run(name, site, x, network, x.shape[0], None)

    def run_rows(
        self, name: str, site: Site, x: Tensor, rows: Tensor, network: Callable[[], Any]
    ) -> Any:
        """Run a network on some samples, through its gates.

        Args:
            name: Name of the network.
            site: Network and branch.
            x: The latents of the whole batch, `[B, C, ...]`.
            rows: Places of the samples that run, `[R]`.
            network: Runs it on these.
        """
        places = tuple(rows.tolist())
        return self._run(name, site, x.index_select(0, rows), network, x.shape[0], places)

    def run_planned(
        self, name: str, site: Site, x: Tensor, plan: TrialPlan, network: Callable[[], Any]
    ) -> Any:
        """Run a network through its gates with another plan; what is kept is read, and stays.

        Args:
            name: Name of the network.
            site: Network and branch, of which kept outputs are read.
            x: The latents of the whole batch, `[B, C, ...]`.
            plan: What the places of each policy do.
            network: Runs it.

        Raises:
            CapabilityError: No policy owns places in this network.
            PolicyError: The plan is impossible.
        """
        gates, session = self.seam.gates.get(name), self.session
        if gates is None:
            raise CapabilityError(
                f"no trial with a plan: no policy owns places in {name}; a policy that asks for "
                "one selects some"
            )
        shape, cells = Shape.of(x, x.shape[0]), self.cells.copy()
        cells.fit(site, shape)
        gates.refuse_intruders()
        owners = [replace(o, assign=lambda _, __, own: plan(own)) for o in self.seam.owners[name]]
        call = GatedCall(owners, gates, cells, site, shape.batch)
        call.begin(session.step, x, self._costs.get((name, shape)), session.engine.agree)
        with opened(gates, call, session):
            output = network()
            gates.settle()
        return output

    def find_undivided(self, site: Site, batch: int) -> str:
        """Why part of the batch cannot run with what is kept; empty if it can."""
        path = self.cells.find_undivided(site, batch)
        return f"{path} keeps an output that has no row for each sample" if path else ""

    def clear(self) -> None:
        """Forget everything, and say in the trace which places were never assigned an action."""
        self.cells.clear()
        self._calls.clear()
        self.session.trace.unassigned = {
            owner: tuple(paths) for owner, paths in self._never.items() if paths
        }

    def _run(
        self,
        name: str,
        site: Site,
        x: Tensor,
        network: Callable[[], Any],
        batch: int,
        rows: tuple[int, ...] | None,
    ) -> Any:
        gates = self.seam.gates.get(name)
        if gates is None:
            return network()
        step = self.session.step
        shape = Shape.of(x, batch)
        self.cells.fit(site, shape)
        gates.refuse_intruders()
        owners = self.seam.owners[name]
        costs = self._costs.get((name, shape))
        call = self._find_call(site, shape, owners, gates, rows)
        call.begin(step, x, costs, self.session.engine.agree)

        def through() -> Any:
            output = network()
            gates.settle()
            return output

        with opened(gates, call, self.session):
            if rows is None and costs is None:
                output, costs = measure_run(gates.network, shape, through, call)
            else:
                output = through()  # of some samples the shares are those of all
        if rows is None and costs is not None:
            self._costs[name, shape] = costs
            self._weigh(site, owners, x, costs)
            gates.check_visits(costs.visits)
        call.close()
        self._report(call, site, owners, x, costs)
        return output

    def _find_call(
        self,
        site: Site,
        shape: Shape,
        owners: Sequence[Owner],
        gates: Gates,
        rows: tuple[int, ...] | None,
    ) -> GatedCall:
        """What carries the plans out; one for all calls of a branch on the whole batch."""
        if rows is not None:
            return GatedCall(owners, gates, self.cells, site, shape.batch, rows)
        known = self._calls.get(site)
        if known is None or known[0] != shape:
            made = GatedCall(owners, gates, self.cells, site, shape.batch)
            known = self._calls[site] = (shape, made)
        return known[1]

    def _weigh(self, site: Site, owners: Sequence[Owner], x: Tensor, costs: Measurement) -> None:
        """Say what the places will keep, at the first call of a branch, and check the bound.

        Raises:
            CapabilityError: It is more than is allowed.
        """
        if site in self._needed:
            return
        own = {
            owner.name: count_state_bytes(
                [p for p in owner.places if p.modules[-1] in costs.output_bytes],
                costs,
                keeps=owner.depth,
                inputs=x.nbytes if owner.keeps_inputs else None,
            )
            for owner in owners
        }
        self._needed[site] = sum(own.values())
        # a pipeline names its branches as they come, the own loop beforehand
        coming = max(0, len(self.session.info.branches) - len(self._needed))
        needed = sum(self._needed.values()) + coming * self._needed[site]
        self.session.trace.state_bytes = needed
        if self.seam.memory is not None:
            check_memory(needed, self.seam.memory, " and ".join(own))

    def _report(
        self,
        call: GatedCall,
        site: Site,
        owners: Sequence[Owner],
        x: Tensor,
        costs: Measurement | None,
    ) -> None:
        share = 1.0 if costs is None else call.share(costs)
        trace = self.session.trace
        trace.module_bytes = max(trace.module_bytes, self.cells.bytes)
        if self.seam.memory is not None:  # where nothing could be measured beforehand
            names = " and ".join(owner.name for owner in owners)
            check_memory(trace.module_bytes, self.seam.memory, names)
        self.session.note_work(site, share, x.shape[0], call.counts)
        for owner in owners:
            if owner.name not in self._never:
                self._never[owner.name] = {place.path: None for place in owner.places}
        if any(self._never.values()):
            for one in call.places:
                if one.action is not None:
                    self._never[one.owner].pop(one.place.path, None)


def check_planned(x: Tensor, own: Tensor, name: str) -> None:
    """Refuse a trial with a plan on latents of another shape, which nothing is kept for.

    Raises:
        CapabilityError: Names both shapes.
    """
    if x.shape != own.shape:
        raise CapabilityError(
            f"no trial of {name} with a plan on latents {tuple(x.shape)}, because what is kept is "
            f"of {tuple(own.shape)}; try a plan on latents of the shape of the call"
        )
