"""`ModuleCall`: one gated module in one network call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules._cells import Learned
from erta_framework.modules._forms import LEAF, Form, list_tensors
from erta_framework.modules._gate import Run
from erta_framework.modules._streams import bind_tensors, match_streams


class ModuleCall:
    """One gated module in one network call: runs it, learns from it, or stands in for it.

    Args:
        path: Path of the module.
        module: The module.
        learned: What is known of it in this branch.
        batch: Samples of the whole batch.
        rows: How many of them run; None for all.

    Attributes:
        visits: How often the network reached it.
        share: The part of it that ran, from 0 to 1.
        inputs: Its tensor arguments in each visit, where somebody asked for them.
    """

    __slots__ = ("batch", "inputs", "learned", "module", "path", "rows", "share", "visits")

    def __init__(
        self, path: str, module: nn.Module, learned: Learned, batch: int, rows: int | None
    ) -> None:
        self.path, self.module, self.learned = path, module, learned
        self.batch, self.rows = batch, rows
        self.visits, self.share = 0, 0.0
        self.inputs: list[Mapping[str, Tensor]] = []

    def begin(self) -> None:
        """Begin another network call."""
        self.visits, self.share = 0, 0.0
        if self.inputs:
            self.inputs = []

    # ------------------------------------------------------------------------- handlers
    def run(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run it, and learn the form of its output."""
        self.share = 1.0
        output = run(*args, **kwargs)
        visit, forms = self.visits, self.learned.forms
        self.visits = visit + 1
        if self.rows is None and len(forms) == visit:
            forms.append(Form.of(output))
        return output

    def run_streams(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run it, and learn also which input each output continues."""
        inputs = self.bind(args, kwargs)
        output = self.run(run, args, kwargs)
        self.name_streams(inputs, output)
        return output

    def skip(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A phantom of its output."""
        visit = self.enter()
        return self.form(visit, "skipped").phantom(self.batch, self.rows)

    def pass_through(self, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Its inputs as its outputs."""
        streams = self.list_streams(self.bind(args, kwargs))
        return self.form(self.enter(), "passed").build(streams)

    # ---------------------------------------------------------------------------- parts
    @property
    def is_plain(self) -> bool:
        """Whether it is known to return one tensor, in one visit of a call."""
        forms = self.learned.forms
        return len(forms) == 1 and forms[0].structure is LEAF

    def enter(self) -> int:
        """Begin a visit; its place among those of this call."""
        self.visits += 1
        return self.visits - 1

    def form(self, visit: int, what: str) -> Form:
        """The form of the output in one visit.

        Raises:
            PolicyError: It has never run so often in a call on the whole batch.
        """
        forms = self.learned.forms
        if visit >= len(forms):
            raise PolicyError(
                f"{self.path} ({type(self.module).__name__}) was to be {what} in visit {visit} of "
                f"a network call, but its output is known of {len(forms)} visits; let it run in "
                "one call on the whole batch first"
            )
        return forms[visit]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The tensor arguments of a visit, by name; remembered for this call."""
        self.inputs.append(bind_tensors(self.module, args, kwargs))
        return self.inputs[-1]

    def name_streams(self, inputs: Mapping[str, Tensor], output: Any) -> Mapping[str, Tensor]:
        """The tensors of an output, by the name of the input that each continues."""
        found = list_tensors(output)
        if self.learned.streams is None:
            self.learned.streams = match_streams(self.module, self.path, inputs, found)
        return dict(zip(self.learned.streams, found, strict=True))

    def list_streams(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The inputs that the outputs continue, in the order of the outputs.

        Raises:
            CapabilityError: These inputs lack one.
        """
        names = self.learned.streams
        if names is None:
            form = self.form(self.visits, "passed")
            empty = [
                Tensor.new_empty(next(iter(inputs.values())), s, device="meta")
                for s, *_ in form.shapes
            ]
            names = self.learned.streams = match_streams(self.module, self.path, inputs, empty)
        missing = [name for name in names if name not in inputs]
        if missing:
            raise CapabilityError(
                f"{self.path} ({type(self.module).__name__}) continues its input {missing[0]!r}, "
                f"which is not among {', '.join(inputs)}; keep outputs instead of residuals"
            )
        return [inputs[name] for name in names]
