"""`Visit`: one module at the moment when the network reaches it, as `Ask` sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from erta_framework.errors import PolicyError
from erta_framework.modules._actions import Action, Of, ReuseKept
from erta_framework.modules._cell import read_tensors
from erta_framework.modules._cells import FEATURE
from erta_framework.modules._parts import Parts
from erta_framework.modules._places import Place
from erta_framework.modules._streams import bind_tensors
from erta_framework.session import Evaluations, Step

if TYPE_CHECKING:
    from erta_framework.modules._gate import Run
    from erta_framework.modules._place_call import PlaceCall

S = TypeVar("S")


class Visit:
    """One module at the moment when the network reaches it.

    Attributes:
        place: The place.
        step: The step.
        call: The network call.
        args: The positional arguments of the module.
        kwargs: The keyword arguments.
        failure: What the module raised.
        reassigned: Whether the plan of another place was changed in this visit.
    """

    def __init__(
        self, owned: PlaceCall, run: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._owned, self._run = owned, run
        self.place: Place = owned.place
        self.step: Step = owned.step
        self.call: Parts = owned.parts
        self.args, self.kwargs = args, kwargs
        self.failure: BaseException | None = None
        self._ran = self._kept = False
        self.reassigned = False
        self._number = owned.output.visits

    @property
    def module(self) -> nn.Module:
        """The module that gives the output of the place."""
        return self._owned.output.module

    @property
    def streams(self) -> Mapping[str, Tensor]:
        """The tensors among the arguments, by name, in the order of the parameters."""
        return bind_tensors(self._owned.output.module, self.args, self.kwargs)

    @property
    def x(self) -> Tensor:
        """The first tensor among the arguments, such as the hidden states `[B, N, C]`."""
        return next(iter(self.streams.values()))

    @property
    def ran(self) -> bool:
        """Whether the module has run in this visit."""
        return self._ran

    @property
    def kept(self) -> Evaluations:
        """What is kept, newest first."""
        return self._owned.kept

    @property
    def age(self) -> int | None:
        """Steps since the output was kept, of the sample that waits longest; None if never."""
        return self.call.age(self.place)

    def run(self, keep: Of | None = None) -> Any:
        """Run the module; its output.

        Args:
            keep: Whether to keep the output or the residual.

        Raises:
            PolicyError: It ran already.
        """
        owned = self._owned
        if self._ran:
            raise PolicyError(f"{owned.owner} ran {self.place} twice in one visit; run it once")
        self._ran = True
        try:
            if keep is None:
                return owned.run(self._run, self.args, self.kwargs)
            owned.check_residual(keep)
            self._begin_to_keep()
            owned.of = keep
            return owned.keep(self._run, self.args, self.kwargs)
        except BaseException as error:
            self.failure = error
            raise

    def name_streams(self, output: Any) -> Mapping[str, Tensor]:
        """The tensors of what the module returned, by the name of the input each continues.

        Raises:
            CapabilityError: One continues no input, or several could be meant.
        """
        return self._owned.output.name_streams(self.streams, output)

    @property
    def features(self) -> Sequence[Tensor]:
        """What `keep` kept last, of the samples that run; empty if nothing."""
        return read_tensors(self.kept[0], FEATURE, 0) if self.kept else ()

    def keep(self, *features: Tensor) -> None:
        """Keep tensors of the policy's own at this place, instead of an output.

        Kept like an output: by branch, with steps, and counted as memory. A call on some samples
        sees and replaces theirs alone.

        Args:
            features: One row for each sample that runs, `[R, ...]`.

        Raises:
            PolicyError: One has other rows.
        """
        call, owned = self.call, self._owned
        rows = call.batch if call.rows is None else len(call.rows)
        for one in features:
            if not one.ndim or one.shape[0] != rows:
                raise PolicyError(
                    f"{owned.owner} keeps a feature {tuple(one.shape)} at {self.place}, but {rows} "
                    "samples run; give it a row for each"
                )
        owned.of, owned.fresh = FEATURE, [list(features)]

    @property
    def kept_input(self) -> Tensor | None:
        """What `keep_input` kept last, of the samples that run; None if nothing."""
        return self.call.kept_input(self.place)

    def keep_input(self, x: Tensor | None = None) -> None:
        """Keep the input of this visit beside the output that is kept in it.

        Counted as memory. A place that keeps several outputs keeps an input with each.

        Args:
            x: The input, where that is another one than `x` of the visit.
        """
        self._owned.before = self._owned.guard([self.x if x is None else x])

    def keep_output(
        self, output: Any, of: Of = "output", rows: Sequence[int] | None = None
    ) -> None:
        """Keep an output that the function has made, as if the module had returned it.

        Args:
            output: What the function answers.
            of: Whether the output is kept, or what it adds to the inputs of this visit.
            rows: The samples of which it is kept, as places among those that run; None for all.

        Raises:
            PolicyError: Something is kept of this visit already, the output has no row for each
                sample and only some are kept, or the place is several modules and has no residual.
        """
        owned = self._owned
        self._begin_to_keep()
        owned.keep_made(output, of, self.streams)
        if rows is not None:
            if any(t.shape[:1] != (self.call.width,) for t in (*owned.fresh[-1], *owned.before)):
                owned.refuse("keeps some samples of", "its output has no row for each")
            owned.choose(rows)

    def _begin_to_keep(self) -> None:
        if self._kept:
            self._owned.refuse("keeps two outputs of", "one visit has one")
        self._kept = True

    def reuse(self, action: ReuseKept) -> Any:
        """The output made of what is kept, as if this action had been assigned.

        The module may run as well, where an answer is made of both.
        """
        return self._owned.answer_from(action, self._number, self._run, self.args, self.kwargs)

    def assign(self, place: Place, action: Action) -> None:
        """Change the plan of another place of the same policy, which the network has not reached.

        Raises:
            PolicyError: It is no place of the policy, or the network has passed it.
        """
        self._owned.reassign(place, action)
        self.reassigned = True

    def agree(self, value: Tensor) -> float:
        """A value that decides, as one number; it is read back from the device.

        Of several values the largest. Ranks that share a sample must decide alike, so it is the
        largest of all of them there; a policy that reads every value through this declares
        `agrees_inside=True` in its traits.
        """
        return self.read(value.max().reshape(1))[0]

    def read(self, values: Tensor) -> list[float]:
        """Values that decide, such as one for each sample, `[N]`; see `Parts.read`."""
        where = f"at {self.place} in step {self.step.index}"
        return self.call.read(values, f"{where} of request {self.step.session.request_id!r}")

    def state_of(self, policy: object, factory: Callable[[], S]) -> S:
        """This policy's own state for this place and branch; `factory` makes it once."""
        return self.call.states.get(policy, self.call.site_of(self.place), factory)
