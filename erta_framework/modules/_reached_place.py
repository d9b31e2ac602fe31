"""`ReachedPlace`: what can be read of a place at the moment when the network reaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from erta_framework.modules._parts import Parts
from erta_framework.modules._places import Place
from erta_framework.modules._streams import bind_tensors
from erta_framework.session import Evaluations, Step

if TYPE_CHECKING:
    from erta_framework.modules._place_call import PlaceCall

S = TypeVar("S")


class ReachedPlace:
    """What can be read of a place at the moment when the network reaches it.

    Attributes:
        place: The place.
        step: The step.
        call: The network call.
        args: The positional arguments of the module.
        kwargs: The keyword arguments.
    """

    def __init__(self, owned: PlaceCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._owned = owned
        self.place: Place = owned.place
        self.step: Step = owned.step
        self.call: Parts = owned.parts
        self.args, self.kwargs = args, kwargs
        self._number = owned.output.visits  # of those in this network call

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
    def rows(self) -> Sequence[int]:
        """Places in the whole batch of the samples of this call, in order."""
        return range(self.call.batch) if self.call.rows is None else self.call.rows

    @property
    def continued(self) -> Mapping[str, Tensor]:
        """The inputs that the tensors of the output continue, by name, in the output's order.

        Known once the module has run in the request.

        Raises:
            CapabilityError: One continues no input, or several could be meant.
        """
        owned, inputs = self._owned.output, self.streams
        tensors = owned.list_streams(inputs)
        return dict(zip(owned.learned.streams or (), tensors, strict=True))

    @property
    def kept(self) -> Evaluations:
        """What is kept, newest first."""
        return self._owned.kept

    @property
    def age(self) -> int | None:
        """Steps since the output was kept, of the sample that waits longest; None if never."""
        return self.call.age(self.place)

    @property
    def features(self) -> Sequence[Tensor]:
        """What `keep` kept last, of the samples that run; empty if nothing."""
        return self.call.features(self.place)

    @property
    def kept_input(self) -> Tensor | None:
        """What `keep_input` kept last, of the samples that run; None if nothing."""
        return self.call.kept_input(self.place)

    def build(self, tensors: Sequence[Tensor]) -> Any:
        """An output of the module made of these tensors, such as a tuple of two streams.

        Raises:
            PolicyError: The module has never run on the whole batch.
        """
        return self._owned.output.form(self._number, "answered").build(tensors)

    def name_streams(self, output: Any) -> Mapping[str, Tensor]:
        """The tensors of what the module returned, by the name of the input each continues.

        Raises:
            CapabilityError: One continues no input, or several could be meant.
        """
        return self._owned.output.name_streams(self.streams, output)

    def agree(self, value: Tensor) -> float:
        """A value that decides, as one number; it is read back from the device.

        Of several values the largest. Ranks that share a sample must decide alike, so it is the
        largest of all of them there; a policy that reads every value through this declares
        `agrees_inside=True` in its traits.
        """
        return self.agree_each(value.max().reshape(1))[0]

    def agree_each(self, values: Tensor) -> list[float]:
        """Several values that decide, such as one a sample, each as in `agree`.

        Args:
            values: `[B]`; ranks that share samples have as many.
        """
        where = f"at {self.place} in step {self.step.index}"
        return self.call.agree_each(values, f"{where} of request {self.step.session.request_id!r}")

    def state_of(self, policy: object, factory: Callable[[], S]) -> S:
        """This policy's own state for this place and branch; `factory` makes it once."""
        return self.call.states.get(policy, self.call.site_of(self.place), factory)
