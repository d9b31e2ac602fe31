"""What flows through a block stack, read off the blocks that ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.network import ShapeRule
from erta_integrations.diffusers.trunk._discovery import Block, returned_names

Streams = tuple[str, ...]  # what one tensor holds: one stream, or several joined along the tokens
TOKENS = 1


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """What a block returned, and how often each tensor had been written into by then."""

    elements: tuple[Tensor | None, ...] = ()
    versions: tuple[int, ...] = ()

    @classmethod
    def of(cls, raw: Any) -> Returned:
        """Take stock of a block's return value."""
        elements = elements_of(raw)
        return cls(elements, tuple(version_of(element) for element in elements))

    @property
    def untouched(self) -> bool:
        """Whether nobody wrote into these tensors since."""
        return all(map(self.is_untouched, range(len(self.elements))))

    def is_untouched(self, place: int) -> bool:
        """Whether nobody wrote into this element since."""
        return version_of(self.elements[place]) == self.versions[place]


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

    `inputs`, `outputs`, `given` and `kept` are held during that call only.

    Attributes:
        stages: Its blocks in order.
        inputs: What the first block was given, by parameter.
        outputs: What the last block returned.
        versions: How often each input had been written into when it was given.
        given: The arguments of the first block.
        kept: What the blocks before a probe returned, by their number from 1.
        residuals: Output minus input of the streams other than `main`, of the last computed call.
        rule: How the network's output relates to its latents.
    """

    stages: list[Stage] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: Returned = field(default_factory=Returned)
    versions: dict[str, int] = field(default_factory=dict)
    given: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
    kept: dict[int, Returned] = field(default_factory=dict)
    residuals: dict[str, Tensor] = field(default_factory=dict)
    rule: ShapeRule | None = None

    @property
    def main(self) -> str:
        """The image stream: the first parameter of the first block that it also returns."""
        returned = self.stages[0].own
        return next(name for name in self.stages[0].block.parameters if name in returned)

    def streams(self, place: int, returned: Returned) -> dict[str, Tensor]:
        """The streams in what the block at this place of the trunk returned."""
        found: dict[str, Tensor] = {}
        for element, content in zip(returned.elements, self.stages[place].content, strict=True):
            if element is None:
                continue
            if len(content) == 1:
                found[content[0]] = element
                continue
            offset = 0
            for name in content:
                size = self.inputs[name].shape[TOKENS]
                found[name] = element.narrow(TOKENS, offset, size)
                offset += size
        return found

    def release(self) -> None:
        """Let go of the tensors of the call that is over."""
        self.inputs, self.outputs, self.given, self.kept = {}, Returned(), ((), {}), {}


def version_of(value: Tensor | None) -> int:
    """How often a tensor was written into; inference tensors do not count it."""
    return 0 if value is None or value.is_inference() else value._version


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
