"""A `Network` made of functions, for loops that are driven by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_framework.session._network import UNDIVIDED


@dataclass(frozen=True, slots=True, eq=False)
class FunctionNetwork:
    """A `Network` made of functions.

    Attributes:
        compute: Runs the network on the input of the call.
        rows: Runs it on the samples at some places of the batch; without it, one sample that must
            be computed computes all.
        at: Runs it on other latents, at another timestep.
        signals: Functions that give the signals that policies may ask for, by name.
        kept: What to remember of a computed call, from its input and output, where that is not
            the residual.
        undivided: Why it cannot run on part of the batch, where `rows` is not given.

    Example:
        >>> FunctionNetwork(lambda: torch.ones(2)).run()
        tensor([1., 1.])
    """

    compute: Callable[[], Tensor]
    rows: Callable[[Tensor], Tensor] | None = None
    at: Callable[[Tensor, float | None], Tensor] | None = None
    signals: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    kept: Callable[[Tensor, Tensor], Mapping[str, Tensor]] | None = None
    undivided: str = UNDIVIDED

    def __post_init__(self) -> None:
        if self.rows is not None:
            object.__setattr__(self, "undivided", "")

    def run(self) -> Tensor:
        """What `compute` gives."""
        return self.compute()

    def run_rows(self, rows: Tensor) -> Tensor:
        """What `rows` gives.

        Raises:
            CapabilityError: There is no such function.
        """
        if self.rows is None:
            raise CapabilityError(f"no part of the batch can run: {self.undivided}")
        return self.rows(rows)

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """What `at` gives.

        Raises:
            CapabilityError: There is no such function.
        """
        if self.at is None:
            raise CapabilityError(
                "no trial: this driver runs the network on the latents of the step only; policies "
                'that need trials declare requires={"trial"} in their traits and are refused where '
                "there are none"
            )
        return self.at(x, timestep)

    def offers(self, name: str) -> bool:
        """Whether it is among `signals`."""
        return name in self.signals

    def signal(self, name: str) -> Tensor:
        """What the function of this name gives."""
        return self.signals[name]()

    def keep(self, x: Tensor, output: Tensor) -> Mapping[str, Tensor] | None:
        """What `kept` gives; without it, the residual is kept."""
        return None if self.kept is None else self.kept(x, output)
