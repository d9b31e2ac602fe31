"""`PlaceRuns`: how the modules of one place run, as a whole or in part, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_framework.modules._actions import Of, Rows
from erta_framework.modules._actions import Tokens as TokensAction
from erta_framework.modules._forms import list_tensors
from erta_framework.modules._gate import Run
from erta_framework.modules._kinds import looks_like_attention
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._partial import TokenPart, run_rows, run_tokens
from erta_framework.modules._parts import Parts
from erta_framework.modules._place_memory import PlaceMemory, take_rows
from erta_framework.session import Step

Outcome = Literal["ran", "reused", "skipped"]


class PlaceRuns(PlaceMemory):
    """How the modules of one owned place run, and what is kept of their outputs.

    Attributes:
        outcome: What became of it in this call so far.
    """

    __slots__ = ("outcome",)

    outcome: Outcome

    def begin(self, parts: Parts, step: Step) -> None:
        """Begin another network call, as its owner sees it."""
        self.parts, self.step, self.outcome = parts, step, "skipped"
        if self.fresh:
            self.fresh = []
        if self.before:
            self.before = []
        if self._lent:
            self._lent = []

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

    def check_residual(self, of: Of) -> None:
        """Refuse the residual of several modules, where a function answers at the last."""
        if of == "residual" and self.members:
            self.refuse("asks for a residual of", "it is several modules; take its output")

    # -------------------------------------------------------------------------- in part
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
