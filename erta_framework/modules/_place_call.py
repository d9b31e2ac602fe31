"""`PlaceCall`: one place in one network call, and how its action is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from erta_framework.errors import ErtaError, PolicyError
from erta_framework.modules._action_rules import HANDLERS, INNER, find_misfit
from erta_framework.modules._actions import Action, Ask, Keep, Pass, ReuseKept, Skip
from erta_framework.modules._actions import Tokens as TokensAction
from erta_framework.modules._cell import Cell
from erta_framework.modules._forms import list_tensors
from erta_framework.modules._gate import Handler, Run
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._place_runs import PlaceRuns
from erta_framework.modules._places import Place
from erta_framework.modules._tally import count_everything, leave_out
from erta_framework.modules._visit import Visit


class PlaceCall(PlaceRuns):
    """How the action of one owned place is carried out, call after call of a branch.

    Args:
        place: The place.
        modules: Its modules, in the order of execution; the last gives the output.
        owner: Names the policy that owns it.
        cell: What it keeps.
        reassign: Changes the plan of another place of the same policy.
    """

    __slots__ = ("_handlers", "reassign")

    def __init__(
        self,
        place: Place,
        modules: Sequence[ModuleCall],
        owner: str,
        cell: Cell,
        reassign: Callable[[Place, Action], None],
    ) -> None:
        super().__init__(place, modules, owner, cell)
        self.reassign = reassign
        self._handlers: Mapping[type, Handler] = {
            kind: getattr(self.output if kind in (Skip, Pass) else self, name)
            for kind, name in HANDLERS.items()
        }

    # ------------------------------------------------------------------------- the plan
    def plan(
        self, action: Action, handlers: dict[str, Handler], outputs: dict[str, Handler]
    ) -> None:
        """Take an action: say what answers at its modules.

        Args:
            action: The action.
            handlers: Gets what answers at the modules before the last.
            outputs: Gets what answers at the last one.

        Raises:
            PolicyError: It cannot be carried out, such as a reuse of nothing.
        """
        self.action = action
        kind, of = type(action), "output"
        if isinstance(action, Keep):
            of = self.of = action.of
        elif isinstance(action, ReuseKept):
            of = action.of
            if not (action.is_newest and self.cell.is_output):
                self._check(action)
        else:
            self._check(action)
        if self.members:
            inner = INNER.get((kind, of == "residual"), "run")
            for one in self.members:
                in_part = isinstance(action, TokensAction)
                handlers[one.path] = (
                    partial(self.run_member, one) if in_part else getattr(one, inner)
                )
        plain = isinstance(action, ReuseKept) and action.is_newest and self.output.is_plain
        outputs[self.output.path] = self.hand_out if plain else self._handlers[kind]

    def _check(self, action: Action) -> None:
        # a function needs nothing that is kept, unless it asks
        kept = () if isinstance(action, Ask) else self.kept
        misfit = find_misfit(action, kept, self.parts.depth, len(self.members) + 1)
        if misfit is not None:
            self.refuse(*misfit)

    # ------------------------------------------------------------------------- handlers
    def reuse(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """It does not run: its output is made of what is kept."""
        action = self.action
        assert isinstance(action, ReuseKept)
        self.outcome = "reused"
        visit = self.output.visits
        form = self.output.form(visit, "reused")
        made = self.combine(action, visit)
        if action.of == "residual":
            self.output.bind(args, kwargs)
            # what the network adds between the modules is in the residual already
            before = (self.members[0] if self.members else self.output).inputs[visit]
            made = [x + r for x, r in zip(self.output.list_streams(before), made, strict=True)]
        self.output.enter()
        return form.build(made)

    def hand_out(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """It does not run: its output is the newest kept one, which is one tensor."""
        output = self.output
        if output.visits:  # was visited once when it was kept
            return self.reuse(run, args, kwargs)
        self.outcome, output.visits = "reused", 1
        return self.lend(self.cell.newest if self.parts.rows is None else self.kept[0].example)

    def ask(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A function of the policy answers."""
        assert isinstance(self.action, Ask)
        before = self.output.visits
        visit, begun = Visit(self, run, args, kwargs), count_everything()
        try:
            output = self.action.answer(visit)
            leave_out(count_everything() - begun - visit.flops)
        except ErtaError:
            raise
        except Exception as error:
            if error is visit.failure:
                raise
            raise PolicyError(
                f"{self.owner} raised {type(error).__name__} at {self.place} in step "
                f"{self.step.index}: {error}"
            ) from error
        if self.output.visits == before:
            self.outcome = "reused"
            form = self.output.form(self.output.enter(), "answered")
            shapes = [tensor.shape for tensor in list_tensors(output)]
            form.check(shapes, self.parts.batch, self.output.rows, f"{self.owner} at {self.place}")
        return output

    def answer_from(
        self,
        action: ReuseKept,
        visit: int,
        run: Run,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The output in a visit as if this action had been assigned; it is no visit of its own."""
        self.check_residual(action.of)
        self._check(action)
        output = self.output
        before = self.action, self.outcome, output.visits, len(output.inputs)
        self.action, output.visits = action, visit
        try:
            return self.reuse(run, args, kwargs)
        finally:
            self.action, self.outcome, output.visits, known = before
            del output.inputs[known:]
