"""`Place`: a named place inside a network whose output can be kept and reused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "block", "attention", "cross", "mlp", "down", "mid", "up", "unit", "span", "cut", "named"
]
"""What a place is: a whole block, its attention, cross-attention or MLP; a stage of a UNet, or one
unit of a stage; a run of blocks as one; the deep part of a UNet as one; any module, by its name."""

KINDS: tuple[Kind, ...] = (
    "block",
    "attention",
    "cross",
    "mlp",
    "down",
    "mid",
    "up",
    "unit",
    "span",
    "cut",
    "named",
)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A named place inside a network: one module, or several of which the last gives the output.

    Places compare by identity: they are looked up at every network call. Discovery makes them
    once for a network.

    Attributes:
        path: Name, unique within the network: the path of the module, such as `blocks.3.attn1`;
            `blocks.1:blocks.5` of a span, `cut:0` of a cut.
        kind: What it is.
        depth: Place of its block in the order of execution, over all lists of the trunk; -1 outside
            of the trunk, such as in a text refiner.
        stack: The list that it stands in, such as `single_transformer_blocks`.
        members: Paths of the modules that need not run where the output is reused, in the order of
            execution. The last one gives the output; the others, such as the projections before a
            fused output, or the deep part of a UNet, are then skipped. Empty where the module at
            `path` is the only one.
    """

    path: str
    kind: Kind
    depth: int
    stack: str = ""
    members: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of its modules, in the order of execution; the last one gives the output."""
        return self.members or (self.path,)

    def __str__(self) -> str:
        return self.path
