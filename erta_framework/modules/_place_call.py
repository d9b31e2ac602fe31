"""`PlaceCall`: one place in one network call, and how its action is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError, ErtaError, PolicyError
from erta_framework.modules._action_rules import HANDLERS, INNER, find_misfit
from erta_framework.modules._actions import Action, Ask, Keep, Of, Pass, ReuseKept, Rows, Skip
from erta_framework.modules._actions import Tokens as TokensAction
from erta_framework.modules._cell import Cell
from erta_framework.modules._forms import list_tensors
from erta_framework.modules._gate import Handler, Run
from erta_framework.modules._kinds import looks_like_attention
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._partial import TokenPart, run_rows, run_tokens
from erta_framework.modules._parts import Parts
from erta_framework.modules._place_memory import PlaceMemory, take_rows
from erta_framework.modules._places import Place
from erta_framework.modules._tally import count_everything, leave_out
from erta_framework.modules._visit import Visit
from erta_framework.session import Step

Outcome = Literal["ran", "reused", "skipped"]


class PlaceCall(PlaceMemory):
    """How the action of one owned place is carried out, call after call of a branch.

    Args:
        place: The place.
        modules: Its modules, in the order of execution; the last gives the output.
        owner: Names the policy that owns it.
        cell: What it keeps.
        reassign: Changes the plan of another place of the same policy.

    Attributes:
        outcome: What became of it in this call so far.
    """

    __slots__ = ("_handlers", "outcome", "reassign")

    outcome: Outcome

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

    def begin(self, parts: Parts, step: Step) -> None:
        """Begin another network call, as its owner sees it."""
        self.parts, self.step, self.outcome = parts, step, "skipped"
        if self.fresh:
            self.fresh = []
        if self.before:
            self.before = []
        if self._lent:
            self._lent = []

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
    def run(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Nothing was assigned: it runs."""
        self.outcome = "ran"
        return self.output.run(run, args, kwargs)

    def keep(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """It runs, and its output or residual is kept."""
        self.outcome = "ran"
        if self.of != "output":
            return self._keep_residual(run, args, kwargs)
        output = self.output.run(run, args, kwargs)
        self.remember([output] if isinstance(output, Tensor) else list_tensors(output))
        return output

    def _keep_residual(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        visit = self.output.visits
        output = self.output.run_streams(run, args, kwargs)
        first = self.members[0] if self.members else self.output
        names = self.output.learned.streams or ()
        before = first.inputs[visit] if visit < len(first.inputs) else {}
        after = dict(zip(names, list_tensors(output), strict=True))
        self.fresh.append(self._subtract(before, after, first.path))
        return output

    def _subtract(
        self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], first: str
    ) -> list[Tensor]:
        """What is added to each stream between its first module and its output."""
        for name, tensor in after.items():
            if name not in before or before[name].shape != tensor.shape:
                raise CapabilityError(
                    f"{self.place} has no residual: {self.output.path} returns {name} "
                    f"{tuple(tensor.shape)}, and {first} gets no such input; keep its output, "
                    "or select a span within one list of blocks"
                )
        return [tensor - before[name] for name, tensor in after.items()]

    def keep_made(
        self, output: Any, of: Of, inputs: Mapping[str, Tensor], rows: Sequence[int] | None
    ) -> None:
        """Keep an output that a policy made of this visit, or what it adds to these inputs."""
        self.check_residual(of)
        self.of, made = of, list_tensors(output)
        if of == "residual":
            after = self.output.name_streams(inputs, output)
            made = self._subtract(inputs, after, self.output.path)
        if rows is not None:
            if any(tensor.shape[:1] != (self.parts.width,) for tensor in made):
                self.refuse("keeps some samples of", "its output has no row for each")
            running = self.parts.rows or range(self.parts.batch)
            self.kept_rows = tuple(running[row] for row in rows)
            made = take_rows(made, rows)
        self.remember(made)

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

    def run_rows(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Some samples run; the others have what is kept of them."""
        assert isinstance(self.action, Rows)
        self.outcome = "ran"
        call = self.output
        old = self.newest(call.visits)
        places = self.parts.rows or range(self.parts.batch)
        self.kept_rows = tuple(places[row] for row in self.action.index)
        fresh = run_rows(call, run, args, kwargs, self.action.index, len(places))
        self.remember(fresh)
        call.share = len(self.action.index) / len(places)
        form = call.form(call.enter(), "run in part")
        index = torch.tensor(self.action.index, device=old[0].device)
        return form.build([o.index_copy(0, index, f) for o, f in zip(old, fresh, strict=True)])

    def run_tokens(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Some tokens run; the others have what is kept of them."""
        assert isinstance(self.action, TokensAction)
        self.outcome = "ran"
        call = self.output
        old = self.newest(call.visits)
        part = self._run_tokens(call, run, args, kwargs, [tensor.shape for tensor in old])
        output = part.put_into(old[0])
        self.remember([output])
        return call.form(call.enter(), "run in part").build([output])

    def run_member(
        self, call: ModuleCall, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Some tokens run through a module before the last; of the others comes out NaN."""
        if looks_like_attention(call.module):
            self.refuse(
                "assigned Tokens to",
                f"{call.path} before it mixes tokens; select that too, and reuse it",
            )
        form = call.form(call.enter(), "run in part")
        whole = list_tensors(form.phantom(self.parts.batch, call.rows))
        part = self._run_tokens(call, run, args, kwargs, [tensor.shape for tensor in whole])
        return form.build([part.put_into(whole[0])])

    def _run_tokens(
        self,
        call: ModuleCall,
        run: Run,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        shapes: Sequence[torch.Size],
    ) -> TokenPart:
        assert isinstance(self.action, TokensAction)
        cross = self.place.kind == "cross"
        part = run_tokens(call, run, args, kwargs, self.action.index, shapes, reads_other=cross)
        call.share = part.share
        return part

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

    def check_residual(self, of: Of) -> None:
        """Refuse the residual of several modules, where a function answers at the last."""
        if of == "residual" and self.members:
            self.refuse("asks for a residual of", "it is several modules; take its output")

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
