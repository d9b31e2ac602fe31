"""What is kept of a computed call, and how much of it policies ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from erta_framework.errors import PolicyError

RESIDUAL, INPUT, OUTPUT = "residual", "input", "output"
"""Names of the tensors that are kept of a whole network or a block stack."""

Stamp = tuple[int, float, float]
"""When one sample was computed: step, sigma, timestep."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is kept of one computed call, because a policy declared that it needs it.

    Attributes:
        index: Step at which the network ran; of the newest sample where they differ.
        sigma: Where the trajectory was.
        time: The timestep that the network was given.
        tensors: What is kept, by name, batch first. Of a network it is the `residual`, with
            `input` and `output` where a policy asks for pairs; a submodule may keep something
            else, such as keys and values.
        stamps: Step, sigma and timestep of each sample, where a per-sample decision made them
            differ; else empty. In `forward`, the reused samples of one call share them.
    """

    index: int
    sigma: float
    time: float
    tensors: Mapping[str, Tensor]
    stamps: tuple[Stamp | None, ...] = ()

    @property
    def residual(self) -> Tensor:
        """`output - input`, `[B, C, ...]`.

        Raises:
            PolicyError: This evaluation keeps something else.
        """
        return self.tensor(RESIDUAL)

    @property
    def input(self) -> Tensor | None:
        """The input, kept only where a policy's memory asks for pairs."""
        return self.tensors.get(INPUT)

    @property
    def output(self) -> Tensor | None:
        """The raw output, kept only where a policy's memory asks for pairs."""
        return self.tensors.get(OUTPUT)

    def tensor(self, name: str) -> Tensor:
        """One of the kept tensors.

        Raises:
            PolicyError: It is not kept; names those that are.
        """
        try:
            return self.tensors[name]
        except KeyError:
            kept = ", ".join(sorted(self.tensors)) or "nothing, as of tokens"
            raise PolicyError(
                f"the evaluation of step {self.index} keeps {kept}, no {name!r}; ask for it in "
                "traits, or read what is kept"
            ) from None

    @property
    def example(self) -> Tensor:
        """The tensor whose shape, type and device decide what this evaluation fits."""
        return next(iter(self.tensors.values()))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def steps(self, batch: int) -> tuple[int, ...]:
        """Step at which each of `batch` samples was computed."""
        if not self.stamps:
            return (self.index,) * batch
        return tuple(self.index if stamp is None else stamp[0] for stamp in self.stamps)

    def map_tensors(self, change: Callable[[str, Tensor], Tensor]) -> Evaluation:
        """The same evaluation with every tensor changed; `change` gets its name as well."""
        return replace(self, tensors={n: change(n, tensor) for n, tensor in self.tensors.items()})


Evaluations = tuple[Evaluation, ...]
"""Newest first."""


@dataclass(frozen=True, slots=True)
class Needs:
    """How much history a policy needs. The session keeps no more than was declared.

    Attributes:
        evaluations: How many computed evaluations of each branch to keep.
        pairs: Whether to keep inputs and outputs besides the residual.
    """

    evaluations: int = 0
    pairs: bool = False
