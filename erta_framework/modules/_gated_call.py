"""One network call with its gates open: the plan of every policy, carried out and recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules._actions import Action
from erta_framework.modules._cells import Cells
from erta_framework.modules._gate import Gates, Handler
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._owners import Owner
from erta_framework.modules._parts import Parts, check_sites
from erta_framework.modules._place_call import Outcome, PlaceCall
from erta_framework.modules._places import Place
from erta_framework.session import Site, Step, make_site


class GatedCall:
    """One network call whose gates carry out the plans of the policies.

    Args:
        owners: The policies with their places in this network.
        gates: The gates on these places.
        cells: What the request keeps.
        step: The step.
        site: Network and branch.
        x: The network's input, of the samples that run.
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
        step: Step,
        site: Site,
        x: Tensor,
        batch: int,
        rows: tuple[int, ...] | None,
    ) -> None:
        self._gates, self._step = gates, step
        self._modules: dict[str, ModuleCall] = {}
        self._owned: dict[int, dict[Place, PlaceCall]] = {}
        self.places: list[PlaceCall] = []
        count = None if rows is None else len(rows)

        def module_call(path: str) -> ModuleCall:
            found = self._modules.get(path)
            if found is None:
                module = gates.module(path)
                learned = cells.learned(make_site(site.model, site.branch, path))
                found = self._modules[path] = ModuleCall(path, module, learned, batch, count)
            return found

        info = step.session
        for owner in owners:
            parts = Parts(
                x,
                site,
                step.index,
                owner.places,
                batch,
                rows,
                info.row_branches,
                owner.depth,
                cells,
                info.states,
            )
            own: dict[Place, PlaceCall] = {}
            self._owned[id(owner)] = own
            reassign = partial(self._reassign, owner)
            for place in owner.places:
                modules = [module_call(path) for path in place.modules]
                call = own[place] = PlaceCall(place, modules, parts, step, owner.name, reassign)
                self.places.append(call)

    def open(self, owners: Sequence[Owner], where: Callable[[], str]) -> None:
        """Ask every policy for its plan, and set the gates.

        Raises:
            PolicyError: A plan is impossible.
        """
        handlers: dict[str, Handler] = {p: one.run for p, one in self._modules.items()}
        handlers |= {call.output.path: call.run for call in self.places}
        outputs: dict[str, Handler] = {}
        for owner in owners:
            own = self._owned[id(owner)]
            parts = next(iter(own.values())).parts
            plan = check_plan(owner.assign(where, self._step, parts), owner, where)
            for place, action in plan.items():
                call = own[place]
                set_handler = partial(put_handler, call.output.path, outputs, handlers)
                call.plan(action, set_handler)
        # an action at a module itself goes before that of a place around it
        for path, handler in (handlers | outputs).items():
            self._gates[path].set(handler)

    def _reassign(self, owner: Owner, place: Place, action: Action) -> None:
        own = self._owned[id(owner)]
        check_plan({place: action}, owner, lambda: f"at step {self._step.index}")
        call = own[place]
        if any(one.visits for one in (*call.members, call.output)):
            raise PolicyError(
                f"{owner.name} assigned an action to {place} at step {self._step.index} after the "
                "network had reached it; assign it before"
            )

        def set_handler(path: str, handler: Handler) -> None:
            self._gates[path].set(handler)

        call.plan(action, set_handler)

    def close(self) -> None:
        """Keep what ran."""
        for call in self.places:
            call.close()

    # ----------------------------------------------------------------------- the report
    @property
    def counts(self) -> Mapping[str, tuple[int, int, int]]:
        """How many places of each kind ran, were reused and were skipped."""
        found = Counter((call.place.kind, read_outcome(call)) for call in self.places)
        kinds = dict.fromkeys(call.place.kind for call in self.places)
        outcomes = ("ran", "reused", "skipped")
        return {
            kind: (
                found[kind, outcomes[0]],  # type: ignore[index]
                found[kind, outcomes[1]],  # type: ignore[index]
                found[kind, outcomes[2]],  # type: ignore[index]
            )
            for kind in kinds
        }

    @property
    def ran_whole(self) -> bool:
        """Whether every gated module ran as a whole."""
        return all(one.share == 1.0 for one in self._modules.values())

    def share(self, costs: Mapping[str, float]) -> float:
        """The part of the network's work that this call did.

        Args:
            costs: Work of each module, as a part of that of the network, by path.
        """
        left_out = {path: one for path, one in self._modules.items() if one.share < 1.0}
        saved = 0.0
        for path, one in left_out.items():
            outer = path.rpartition(".")[0]
            while outer and outer not in left_out:
                outer = outer.rpartition(".")[0]
            if not outer:
                saved += costs.get(path, 0.0) * (1.0 - one.share)
        return 1.0 - saved


def read_outcome(call: PlaceCall) -> Outcome:
    """What became of a place; one without an action may have run as a part of another place."""
    return "ran" if call.action is None and call.output.share else call.outcome


def put_handler(
    output: str,
    outputs: dict[str, Handler],
    handlers: dict[str, Handler],
    path: str,
    handler: Handler,
) -> None:
    """Note what answers at a module, apart for the output of a place."""
    (outputs if path == output else handlers)[path] = handler


def check_plan(plan: object, owner: Owner, where: Callable[[], str]) -> Mapping[Place, Action]:
    """A plan as the policy gave it, if it is one.

    Raises:
        PolicyError: It is no mapping of own places to actions.
    """
    if plan is None:
        return {}
    if not isinstance(plan, Mapping):
        raise PolicyError(
            f"{owner.name} returned {plan!r} from assign {where()}; return a mapping from places "
            "of call.sites to actions, or None"
        )
    check_sites(plan, owner.places, lambda: owner.name)
    for place, action in plan.items():
        if not isinstance(action, Action):
            raise PolicyError(
                f"{owner.name} assigned {action!r} to {place} {where()}; give KEEP, "
                "ReuseKept(...), SKIP, PASS, Rows(...), Tokens(...) or Ask(...)"
            )
    return plan
