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
        self._ran = False

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

    def reuse(self, action: ReuseKept) -> Any:
        """The output made of what is kept, as if this action had been assigned."""
        return self._owned.answer_from(action, self._run, self.args, self.kwargs)

    def assign(self, place: Place, action: Action) -> None:
        """Change the plan of another place of the same policy, which the network has not reached.

        Raises:
            PolicyError: It is no place of the policy, or the network has passed it.
        """
        self._owned.reassign(place, action)

    def agree(self, value: Tensor) -> float:
        """A value that decides, as one number; it is read back from the device.

        Of several values the largest. Ranks that share a sample must decide alike, so it is the
        largest of all of them there; a policy that reads every value through this declares
        `agrees_inside=True` in its traits.
        """
        agree = self.call.agree
        largest = value.max()
        if agree is None:
            return float(largest)
        where = f"at {self.place} in step {self.step.index}"
        return float(agree(largest, f"{where} of request {self.step.session.request_id!r}"))

    def state_of(self, policy: object, factory: Callable[[], S]) -> S:
        """This policy's own state for this place and branch; `factory` makes it once."""
        return self.call.states.get(policy, self.call.site_of(self.place), factory)
