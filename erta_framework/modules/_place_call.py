"""`PlaceCall`: one place in one network call, and how its action is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError, ErtaError, PolicyError
from erta_framework.modules._action_rules import HANDLERS, INNER, find_misfit
from erta_framework.modules._actions import Action, Ask, Keep, Pass, ReuseKept, Rows, Skip
from erta_framework.modules._actions import Tokens as TokensAction
from erta_framework.modules._cells import get_version, is_written, name_tensors, read_tensors
from erta_framework.modules._forms import list_tensors
from erta_framework.modules._gate import Handler, Run
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._partial import run_rows, run_tokens
from erta_framework.modules._parts import Parts
from erta_framework.modules._places import Place
from erta_framework.modules._visit import Visit
from erta_framework.modules._weighting import sum_kept
from erta_framework.session import Evaluation, Evaluations, Step

Outcome = Literal["ran", "reused", "skipped"]


class PlaceCall:
    """One owned place in one network call.

    Args:
        place: The place.
        modules: Its modules in this call, in the order of execution; the last gives the output.
        parts: The call as its owner sees it.
        step: The step.
        owner: Names the policy that owns it.
        reassign: Changes the plan of another place of the same policy.

    Attributes:
        action: What was assigned; None runs it.
        outcome: What became of it so far.
        fresh: What is to be kept of each visit.
        of: What `fresh` is.
    """

    def __init__(
        self,
        place: Place,
        modules: Sequence[ModuleCall],
        parts: Parts,
        step: Step,
        owner: str,
        reassign: Callable[[Place, Action], None],
    ) -> None:
        self.place, self.members, self.output = place, modules[:-1], modules[-1]
        self.parts, self.step, self.owner, self.reassign = parts, step, owner, reassign
        self.action: Action | None = None
        self.outcome: Outcome = "skipped"
        self.fresh: list[list[Tensor]] = []
        self.of: str = "output"
        self.kept_rows: tuple[int, ...] | None = parts.rows
        self._lent: list[tuple[Tensor, int | None]] = []

    @property
    def kept(self) -> Evaluations:
        """What is kept, newest first."""
        return self.parts.kept(self.place)

    # ------------------------------------------------------------------------- the plan
    def plan(self, action: Action, set_handler: Callable[[str, Handler], None]) -> None:
        """Take an action: set what answers at its modules.

        Raises:
            PolicyError: It cannot be carried out, such as a reuse of nothing.
        """
        self.action = action
        self._check(action)
        residual = isinstance(action, Keep | ReuseKept) and action.of == "residual"
        if isinstance(action, Keep):
            self.of = action.of
        inner = INNER.get((type(action), residual), "run")
        for one in self.members:
            set_handler(one.path, getattr(one, inner))
        holder = self.output if isinstance(action, Skip | Pass) else self
        set_handler(self.output.path, getattr(holder, HANDLERS[type(action)]))

    def _check(self, action: Action) -> None:
        misfit = find_misfit(action, self.kept, self.parts.depth, len(self.members) + 1)
        if misfit is not None:
            self._refuse(*misfit)

    def _refuse(self, what: str, why: str) -> None:
        raise PolicyError(
            f"{self.owner} {what} {self.place} in branch {self.parts.branch!r} of "
            f"{self.parts.model!r} at step {self.step.index}, but {why}"
        )

    # ------------------------------------------------------------------------- handlers
    def run(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Nothing was assigned: it runs."""
        self.outcome = "ran"
        return self.output.run(run, args, kwargs)

    def keep(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """It runs, and its output or residual is kept."""
        self.outcome = "ran"
        if self.of == "output":
            output = self.output.run(run, args, kwargs)
            self._remember(list_tensors(output))
            return output
        visit = self.output.visits
        output = self.output.run_streams(run, args, kwargs)
        first = self.members[0] if self.members else self.output
        names = self.output.learned.streams or ()
        before = first.inputs[visit] if visit < len(first.inputs) else {}
        found: list[Tensor] = []
        for name, tensor in zip(names, list_tensors(output), strict=True):
            if name not in before or before[name].shape != tensor.shape:
                raise CapabilityError(
                    f"{self.place} has no residual: {self.output.path} returns {name} "
                    f"{tuple(tensor.shape)}, and {first.path} gets no such input; keep its output, "
                    "or select a span within one list of blocks"
                )
            found.append(tensor - before[name])
        self.fresh.append(found)
        return output

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

    def run_rows(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Some samples run; the others have what is kept of them."""
        assert isinstance(self.action, Rows)
        self.outcome = "ran"
        call = self.output
        old = self.newest(call.visits)
        places = self.parts.rows or range(self.parts.batch)
        self.kept_rows = tuple(places[row] for row in self.action.index)
        fresh = run_rows(call, run, args, kwargs, self.action.index, len(places))
        self._remember(fresh)
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
        output, call.share = run_tokens(call, run, args, kwargs, self.action.index, old)
        self._remember([output])
        return call.form(call.enter(), "run in part").build([output])

    def ask(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A function of the policy answers."""
        assert isinstance(self.action, Ask)
        before = self.output.visits
        visit = Visit(self, run, args, kwargs)
        try:
            output = self.action.answer(visit)
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
        self, action: ReuseKept, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The output as if this action had been assigned."""
        self._check(action)
        asked, self.action = self.action, action
        try:
            return self.reuse(run, args, kwargs)
        finally:
            self.action = asked

    # ---------------------------------------------------------------------------- parts
    def combine(self, action: ReuseKept, visit: int) -> list[Tensor]:
        """The weighted sum of what is kept of one visit, tensor by tensor."""
        levels = [self.read(e, action.of, visit) for e in self.kept[: action.depth]]
        made = sum_kept(levels, action.weights)
        if action.then is not None:
            return [action.then(tensor) for tensor in made]
        return [self._lend(tensor) for tensor in made] if made is levels[0] else made

    def newest(self, visit: int) -> list[Tensor]:
        """The newest kept output of one visit."""
        return self.read(self.kept[0], "output", visit)

    def read(self, evaluation: Evaluation, of: str, visit: int) -> list[Tensor]:
        """The kept tensors of one visit.

        Raises:
            PolicyError: Fewer visits were kept.
        """
        found = read_tensors(evaluation, of, visit)
        if not found:
            self._refuse(f"reuses visit {visit} of", "it was visited less often when it was kept")
        return found

    def _remember(self, tensors: list[Tensor]) -> None:
        copies = self.output.learned.copies or any(t.is_inference() for t in tensors)
        kept = [tensor.clone() for tensor in tensors] if copies else tensors
        self.fresh.append(kept)
        if not copies:
            self._lent += [(tensor, get_version(tensor)) for tensor in tensors]

    def _lend(self, tensor: Tensor) -> Tensor:
        """A kept tensor for the network to use; a copy where it may be written into."""
        if self.output.learned.copies or tensor.is_inference():
            return tensor.clone()
        self._lent.append((tensor, get_version(tensor)))
        return tensor

    # ----------------------------------------------------------------------- the end
    def close(self) -> None:
        """Keep what ran, now that the whole network has run.

        Where the network wrote into a tensor that is kept, that is not what the module returned any
        more: the place forgets it, and keeps copies from then on.
        """
        parts, site = self.parts, self.parts.site_of(self.place)
        if any(is_written(tensor, version) for tensor, version in self._lent):
            self.output.learned.copies = True
            parts.cells.forget(parts.depth, site)
            return
        if not self.fresh:
            return
        tensors = name_tensors(self.of, self.fresh)
        cells, interval = parts.cells, self.step.interval
        if isinstance(self.action, TokensAction):
            cells.replace(parts.depth, site, tensors)
        else:
            cells.keep(parts.depth, site, interval, tensors, parts.batch, self.kept_rows)
