"""One network call with its gates open: the plan of every policy, carried out and recorded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_framework.modules._action_rules import HANDLERS
from erta_framework.modules._actions import Action
from erta_framework.modules._cells import Cells
from erta_framework.modules._costs import Measurement
from erta_framework.modules._gate import Handler
from erta_framework.modules._gates import Gates
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._owners import Owner
from erta_framework.modules._parts import Agree, Parts, check_sites
from erta_framework.modules._place_call import Outcome, PlaceCall
from erta_framework.modules._places import Place
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
        self.places: list[PlaceCall] = []
        for owner in owners:
            reassign = partial(self._reassign, owner)
            own = self._owned[id(owner)] = {
                place: PlaceCall(
                    place, [self._find_module(path) for path in place.modules], owner.name, reassign
                )
                for place in owner.places
            }
            self.places += own.values()
        self._untouched: dict[str, Handler] = {p: one.run for p, one in self._modules.items()}
        self._untouched |= {call.output.path: call.run for call in self.places}

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
                self._cells,
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
        handlers, outputs = dict(self._untouched), dict[str, Handler]()
        for owner in self._owners:
            own = self._owned[id(owner)]
            parts = next(iter(own.values())).parts
            plan = check_plan(owner.assign(where, self._step, parts), own, owner, where)
            for place, action in plan.items():
                own[place].plan(action, handlers, outputs)
        # an action at a module itself goes before that of a place around it
        handlers |= outputs
        gates, thread = self._gates, threading.get_ident()
        for path, handler in handlers.items():
            gates[path].set(handler, thread)

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
        for path, handler in handlers.items():
            self._gates[path].set(handler, threading.get_ident())

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

    def share(self, costs: Measurement) -> float:
        """The part of the network's FLOPs that this call did.

        Args:
            costs: Those of a call in which every module runs.
        """
        left_out = {path: one for path, one in self._modules.items() if one.share < 1.0}
        saved = 0.0
        for path, one in left_out.items():
            outer = path.rpartition(".")[0]
            while outer and outer not in left_out:
                outer = outer.rpartition(".")[0]
            if not outer:
                saved += costs.flops.get(path, 0) * (1.0 - one.share)
        return 1.0 - saved / costs.total


def read_outcome(call: PlaceCall) -> Outcome:
    """What became of a place; one without an action may have run as a part of another place."""
    return "ran" if call.action is None and call.output.share else call.outcome


def check_plan(
    plan: object, own: Mapping[Place, object], owner: Owner, where: Callable[[], str]
) -> Mapping[Place, Action]:
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
    check_sites(plan, own, lambda: owner.name)
    for place, action in plan.items():
        if type(action) not in HANDLERS:
            raise PolicyError(
                f"{owner.name} assigned {action!r} to {place} {where()}; give KEEP, "
                "ReuseKept(...), SKIP, PASS, Rows(...), Tokens(...) or Ask(...)"
            )
    return plan
