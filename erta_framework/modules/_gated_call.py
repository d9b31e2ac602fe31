"""One network call with its gates open: the plan of every policy, carried out and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules._actions import Action
from erta_framework.modules._cell import Cell
from erta_framework.modules._cells import Cells
from erta_framework.modules._costs import Measurement
from erta_framework.modules._gate import Handler
from erta_framework.modules._gates import Answering, Gates
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._owners import Owner
from erta_framework.modules._parts import Agree, Parts
from erta_framework.modules._place_call import PlaceCall
from erta_framework.modules._places import Place
from erta_framework.modules._plans import LASTING, Plan, check_mapping, check_plan, is_same_plan
from erta_framework.session import Site, Step, make_site


class GatedCall:
    """A network call whose gates carry out the plans of the policies.

    It serves every call of a branch on the same samples, one after the other: `begin`, `open`, run
    the network, `close`.

    Args:
        owners: The policies with their places in this network.
        gates: The gates on these places.
        cells: What the request keeps.
        site: Network and branch.
        batch: Samples of the whole batch.
        rows: Those that run; None for all.

    Attributes:
        places: The owned places, in the order of their owners.
    """

    def __init__(
        self,
        owners: Sequence[Owner],
        gates: Gates,
        cells: Cells,
        site: Site,
        batch: int,
        rows: tuple[int, ...] | None = None,
    ) -> None:
        self._gates, self._owners, self._cells = gates, owners, cells
        self._site, self._batch, self._rows = site, batch, rows
        self._modules: dict[str, ModuleCall] = {}
        self._owned: dict[int, dict[Place, PlaceCall]] = {}
        self._held: dict[int, Mapping[Place, Cell]] = {}
        self.places: list[PlaceCall] = []
        for owner in owners:
            reassign = partial(self._reassign, owner)
            own = self._owned[id(owner)] = {
                place: PlaceCall(
                    place,
                    [self._find_module(path) for path in place.modules],
                    owner.name,
                    cells.cell(owner.depth, make_site(site.model, site.branch, place.path)),
                    reassign,
                )
                for place in owner.places
            }
            self._held[id(owner)] = {place: call.cell for place, call in own.items()}
            self.places += own.values()
        self._kinds: dict[str, list[PlaceCall]] = {}
        for call in self.places:
            self._kinds.setdefault(call.place.kind, []).append(call)
        self._untouched: dict[str, Handler] = {p: one.run for p, one in self._modules.items()}
        self._answering: list[Answering] = []
        self._plans: list[Plan] = []
        self._planned_at = -1  # how often anything had changed its kind; -1: plan again
        self._spared: tuple[Measurement, list[float], float] | None = None

    def _find_module(self, path: str) -> ModuleCall:
        found = self._modules.get(path)
        if found is None:
            module, site = self._gates.module(path), self._site
            learned = self._cells.learned(make_site(site.model, site.branch, path))
            count = None if self._rows is None else len(self._rows)
            found = ModuleCall(path, module, learned, self._batch, count)
            self._modules[path] = found
        return found

    def begin(
        self, step: Step, x: Tensor, costs: Measurement | None, agree: Agree | None = None
    ) -> None:
        """Begin the call of a step.

        Args:
            step: The step.
            x: The network's input, of the samples that run.
            costs: What the modules of the network cost, where that is known.
            agree: Makes values the same on ranks that share a sample.
        """
        self._step = step
        for one in self._modules.values():
            one.begin()
        for owner in self._owners:
            parts = Parts(
                x,
                self._site,
                step.index,
                owner.places,
                self._batch,
                self._rows,
                step.session.row_branches,
                owner.depth,
                self._held[id(owner)],
                step.session.states,
                costs,
                agree,
            )
            for call in self._owned[id(owner)].values():
                call.begin(parts, step)

    def open(self, where: Callable[[], str]) -> None:
        """Ask every policy for its plan, and set the gates.

        Raises:
            PolicyError: A plan is impossible.
        """
        plans: list[Plan] = []
        for owner in self._owners:
            parts = next(iter(self._owned[id(owner)].values())).parts
            plans.append(check_mapping(owner.assign(where, self._step, parts), owner, where))
        changes = self._cells.changes.number
        if self._planned_at != changes or not all(map(is_same_plan, plans, self._plans)):
            self._planned_at = -1  # until every action was found to be possible
            self._answering = self._gates.pair(self._take(plans, where))
            actions = {type(action) for plan in plans for action in plan.values()}
            if actions <= LASTING:
                # a policy may fill the same dictionary again
                self._plans, self._planned_at = [dict(plan) for plan in plans], changes
        self._gates.set(self._answering)

    def _take(self, plans: Sequence[Plan], where: Callable[[], str]) -> dict[str, Handler]:
        """Give every place its action; what answers at each module."""
        handlers, outputs = dict(self._untouched), dict[str, Handler]()
        for call in self.places:
            call.rest()
        for owner, plan in zip(self._owners, plans, strict=True):
            own = self._owned[id(owner)]
            check_plan(plan, own, owner, where)
            for place, action in plan.items():
                own[place].plan(action, handlers, outputs)
        # an action at a module itself goes before that of a place around it
        return handlers | outputs

    def _reassign(self, owner: Owner, place: Place, action: Action) -> None:
        own = self._owned[id(owner)]
        check_plan({place: action}, own, owner, lambda: f"at step {self._step.index}")
        call = own[place]
        if any(one.visits for one in (*call.members, call.output)):
            raise PolicyError(
                f"{owner.name} assigned an action to {place} at step {self._step.index} after the "
                "network had reached it; assign it before"
            )

        handlers: dict[str, Handler] = {}
        call.plan(action, handlers, handlers)
        self._gates.set(self._gates.pair(handlers))

    def close(self) -> None:
        """Keep what ran."""
        interval = self._step.interval
        stamp = (interval.index, interval.start, interval.time)
        for call in self.places:
            call.close(stamp)

    # ----------------------------------------------------------------------- the report
    @property
    def counts(self) -> Mapping[str, tuple[int, int, int]]:
        """How many places of each kind ran, were reused and were skipped."""
        found = {}
        for kind, calls in self._kinds.items():
            # one without an action may have run as a part of another place
            outcomes = [
                "ran" if call.action is None and call.output.share else call.outcome
                for call in calls
            ]
            found[kind] = (
                outcomes.count("ran"),
                outcomes.count("reused"),
                outcomes.count("skipped"),
            )
        return found

    @property
    def ran_whole(self) -> bool:
        """Whether every gated module ran as a whole."""
        return all(one.share == 1.0 for one in self._modules.values())

    def share(self, costs: Measurement) -> float:
        """The part of the network's FLOPs that this call did.

        Args:
            costs: Those of a call in which every module runs.
        """
        shares = [one.share for one in self._modules.values()]
        if self._spared is not None and self._spared[0] is costs and self._spared[1] == shares:
            return self._spared[2]
        left_out = {path: one for path, one in self._modules.items() if one.share < 1.0}
        saved = 0.0
        for path, one in left_out.items():
            outer = path.rpartition(".")[0]
            while outer and outer not in left_out:
                outer = outer.rpartition(".")[0]
            if not outer:
                saved += costs.flops.get(path, 0) * (1.0 - one.share)
        share = 1.0 - saved / costs.total
        self._spared = (costs, shares, share)
        return share
