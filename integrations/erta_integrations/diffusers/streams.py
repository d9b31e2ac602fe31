"""What flows through a block stack, read off the blocks that ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.trunk import Block, returned_names

Streams = tuple[str, ...]  # what one tensor holds: one stream, or several joined along the tokens
TOKENS = 1


@dataclass(slots=True, eq=False)
class Stage:
    """What one block of the trunk takes and returns.

    Attributes:
        block: The block.
        own: Its own parameter that each element of its output stands for; None for no tensor.
        bare: Whether it returns a bare tensor.
        content: The streams that each element of its output holds.
        joined: Whether its input is the joined output of the block before.
    """

    block: Block
    own: tuple[str | None, ...]
    bare: bool
    content: tuple[Streams, ...]
    joined: bool


@dataclass(slots=True, eq=False)
class Chain:
    """A trunk, as the first computed call of a branch showed it.

    `inputs` and `outputs` are held during that call only.
    """

    stages: list[Stage] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: tuple[Tensor | None, ...] = ()
    versions: dict[str, int] = field(default_factory=dict)
    given: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
    residuals: dict[str, Tensor] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The image stream: the first parameter of the first block that it also returns."""
        returned = self.stages[0].own
        return next(name for name in self.stages[0].block.parameters if name in returned)


def elements_of(raw: Any) -> tuple[Tensor | None, ...]:
    """What a block returned, as a tuple of tensors and None."""
    values = raw if isinstance(raw, tuple | list) else (raw,)
    return tuple(value if isinstance(value, Tensor) else None for value in values)


def own_parameters(
    block: Block, elements: tuple[Tensor | None, ...], inputs: Mapping[str, Tensor]
) -> tuple[str | None, ...]:
    """The input that each output stands for: by the returned names, else by the shape."""
    shapes = {name: value.shape for name, value in inputs.items()}
    for names in returned_names(type(block.module).forward):
        fits = len(names) == len(elements) and all(
            element is None or shapes.get(name) == element.shape
            for name, element in zip(names, elements, strict=True)
        )
        if fits:
            return tuple(
                None if element is None else name
                for name, element in zip(names, elements, strict=True)
            )
    found: list[str | None] = []
    for element in elements:
        like = [n for n, s in shapes.items() if element is not None and s == element.shape]
        alike = [n for n in like if n not in found]
        if len(alike) > 1 and len(elements) > 1:
            raise CapabilityError(
                f"{block.name} ({type(block.module).__name__}) returns an output that may stand "
                f"for {' or '.join(alike)}, all of shape {tuple(shapes[alike[0]])}; use "
                "seam='latent'"
            )
        found.append(alike[0] if alike else None)
    return tuple(found)


def is_joined(value: Tensor, first: Tensor | None, second: Tensor | None) -> bool:
    """Whether `value` is these two, one after the other along the tokens."""
    if first is None or second is None or value.ndim < 2 or value.ndim != first.ndim:
        return False
    size, total = first.shape[TOKENS], first.shape[TOKENS] + second.shape[TOKENS]
    return (
        value.shape[TOKENS] == total
        and torch.equal(value[:, :size], first)
        and torch.equal(value[:, size:], second)
    )


def glued(cls: str, before: Block, after: Block) -> str:
    """The message for stacks whose blocks do not simply follow each other."""
    return (
        f"{cls} changes what passes from {before.name} to {after.name} (a skip connection, a "
        "ControlNet residual or another sum between blocks), so its blocks cannot be skipped as "
        "one; use seam='latent'"
    )
