"""`Network`: one network call as a driver offers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from erta_framework.modules import Action, Parts, Place

TrialPlan = Callable[["Parts"], "Mapping[Place, Action] | None"]
"""What the places of each policy do in a trial; called as `assign` is, for each owner of places."""

UNDIVIDED = "the driver cannot run the network on part of it"


class Network(Protocol):
    """One network call as a driver offers it. Nothing runs until one of these methods is called.

    `FunctionNetwork` makes one out of functions, for loops that are driven by hand.
    """

    @property
    def undivided(self) -> str:
        """Why the network cannot run on part of the batch; empty if it can."""
        ...

    def run(self) -> Tensor:
        """The prediction for the input of the call, `[B, C, ...]`."""
        ...

    def run_rows(self, rows: Tensor) -> Tensor:
        """The prediction for the samples at these places of the batch, `[R]`: `[R, C, ...]`."""
        ...

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """The prediction for other latents `[B, C, ...]` or at another timestep; None is its own.

        Raises:
            CapabilityError: The driver cannot do that.
        """
        ...

    def offers(self, name: str) -> bool:
        """Whether there is a signal of this name, without its prefix."""
        ...

    def signal(self, name: str) -> Tensor:
        """A signal by name, such as the modulated input of block 0.

        Raises:
            KeyError: The driver does not offer it.
        """
        ...

    def keep(self, x: Tensor, output: Tensor) -> Mapping[str, Tensor] | None:
        """What to remember of a computed call, by name; None for the residual `output - x`.

        Sites whose output is not like their input keep something else, such as keys and values.
        """
        ...


@runtime_checkable
class PlannedNetwork(Protocol):
    """A network call whose trials can run places inside the network by another plan."""

    def run_planned(self, plan: TrialPlan, x: Tensor, timestep: float | None) -> Tensor:
        """As `Network.run_at`, with a plan for the places that policies own; nothing is kept.

        Raises:
            CapabilityError: The driver cannot do that.
        """
        ...


@runtime_checkable
class TokenNetwork(Network, Protocol):
    """A network call on tokens, which can reuse the keys and values of some positions."""

    def run_reusing(self, positions: Tensor, first_layer: int) -> Tensor:
        """Logits `[B, L, V]`, from a run on the positions that are not reused.

        Args:
            positions: Whose keys and values are reused where they are held, `[B, L]` booleans.
            first_layer: Layers below it run on every position.
        """
        ...
