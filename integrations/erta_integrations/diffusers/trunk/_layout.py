"""The layout of a trunk: which streams each block takes and returns.

A stream is what a block takes and returns again in the same shape, such as the image tokens or the
text tokens. It is named after the parameter of the first block that takes it. A tensor may hold
several streams, concatenated along the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_framework.modules import find_returned_names
from erta_integrations.diffusers.network import ShapeRule
from erta_integrations.diffusers.trunk._discovery import Block

Streams = tuple[str, ...]
"""Names of the streams that one tensor holds."""
TOKENS = 1
"""The axis of the tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockOutput:
    """What a block returned.

    Attributes:
        elements: Its tensors, and None for what is no tensor.
        versions: How often each tensor had been written into when it was returned.
    """

    elements: tuple[Tensor | None, ...] = ()
    versions: tuple[int, ...] = ()

    @classmethod
    def of(cls, raw: Any) -> BlockOutput:
        """Read a block's return value."""
        elements = to_elements(raw)
        return cls(elements, tuple(get_version(element) for element in elements))

    @property
    def untouched(self) -> bool:
        """Whether nobody wrote into these tensors since."""
        return all(map(self.is_untouched, range(len(self.elements))))

    def is_untouched(self, place: int) -> bool:
        """Whether nobody wrote into this element since."""
        return get_version(self.elements[place]) == self.versions[place]


@dataclass(slots=True, eq=False)
class BlockIO:
    """What one block of the trunk takes and returns.

    Attributes:
        block: The block.
        parameters: For each element of its output, the parameter that takes the same stream; None
            for no tensor.
        bare: Whether it returns a tensor instead of a tuple.
        streams: For each element of its output, the streams that it holds.
        joined: Whether it takes the output of the block before in one concatenated tensor.
    """

    block: Block
    parameters: tuple[str | None, ...]
    bare: bool
    streams: tuple[Streams, ...]
    joined: bool


@dataclass(slots=True, eq=False)
class TrunkLayout:
    """The layout of a trunk, traced in the first computed call of a branch.

    `inputs`, `outputs`, `arguments` and `probed` are held during one call only.

    Attributes:
        blocks: Its blocks in order.
        inputs: The tensors that the first block takes, by parameter.
        outputs: What the last block returned.
        versions: How often each input had been written into before the first block ran.
        arguments: `args` and `kwargs` of the first block.
        probed: What the block before each probe returned, by number of blocks.
        residuals: Output minus input of the streams other than `main`, at the last computed call.
        rule: How the network's output relates to its latents.
    """

    blocks: list[BlockIO] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: BlockOutput = field(default_factory=BlockOutput)
    versions: dict[str, int] = field(default_factory=dict)
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
    probed: dict[int, BlockOutput] = field(default_factory=dict)
    residuals: dict[str, Tensor] = field(default_factory=dict)
    rule: ShapeRule | None = None

    @property
    def main(self) -> str:
        """The image stream: the first parameter of the first block that it also returns."""
        returned = self.blocks[0].parameters
        return next(name for name in self.blocks[0].block.parameters if name in returned)

    def split_streams(self, place: int, output: BlockOutput) -> dict[str, Tensor]:
        """The streams in what the block at this place returned, `[B, N, C]` each."""
        found: dict[str, Tensor] = {}
        for element, streams in zip(output.elements, self.blocks[place].streams, strict=True):
            if element is None:
                continue
            if len(streams) == 1:
                found[streams[0]] = element
                continue
            offset = 0
            for name in streams:
                size = self.inputs[name].shape[TOKENS]
                found[name] = element.narrow(TOKENS, offset, size)
                offset += size
        return found

    def join_streams(self, streams: Mapping[str, Tensor]) -> Any:
        """A return value of the last block that holds these streams."""
        last = self.blocks[-1]
        elements = tuple(
            torch.cat([streams[name] for name in names], TOKENS)
            if len(names) > 1
            else (streams[names[0]] if names else None)
            for names in last.streams
        )
        return elements[0] if last.bare else elements

    def release(self) -> None:
        """Release the tensors of the call that is over."""
        self.inputs, self.outputs = {}, BlockOutput()
        self.arguments, self.probed = ((), {}), {}


def get_version(value: Tensor | None) -> int:
    """How often a tensor was written into; inference tensors do not count it."""
    return 0 if value is None or value.is_inference() else value._version


def to_elements(raw: Any) -> tuple[Tensor | None, ...]:
    """What a block returned, as a tuple of tensors and None."""
    values = raw if isinstance(raw, tuple | list) else (raw,)
    return tuple(value if isinstance(value, Tensor) else None for value in values)


def match_parameters(
    block: Block, elements: tuple[Tensor | None, ...], inputs: Mapping[str, Tensor]
) -> tuple[str | None, ...]:
    """Match each output of a block with the parameter of its stream.

    The names in the block's `return` decide, if their shapes fit; otherwise the shapes alone.

    Raises:
        CapabilityError: Several parameters have the shape of one output.
    """
    shapes = {name: value.shape for name, value in inputs.items()}
    for names in find_returned_names(type(block.module).forward):
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
                f"{block.name} ({type(block.module).__name__}) returns an output that may match "
                f"{' or '.join(alike)}, all of shape {tuple(shapes[alike[0]])}; use "
                "seam='latent'"
            )
        found.append(alike[0] if alike else None)
    return tuple(found)


def is_concatenation(value: Tensor, first: Tensor | None, second: Tensor | None) -> bool:
    """Whether `value` is these two tensors, concatenated along the tokens."""
    if first is None or second is None or value.ndim < 2 or value.ndim != first.ndim:
        return False
    size, total = first.shape[TOKENS], first.shape[TOKENS] + second.shape[TOKENS]
    return (
        value.shape[TOKENS] == total
        and torch.equal(value[:, :size], first)
        and torch.equal(value[:, size:], second)
    )


def check_link(
    cls: str, before: BlockIO, after: BlockIO, output: BlockOutput, inputs: Mapping[str, Tensor]
) -> None:
    """Refuse a block that does not take the very output of the block before.

    Raises:
        CapabilityError: The network changed it in between.
    """
    if after.joined:
        return
    for place, element in enumerate(output.elements):
        if element is None:
            continue
        passed = any(value is element for value in inputs.values())
        if not passed or not output.is_untouched(place):
            raise CapabilityError(explain_broken_link(cls, before.block, after.block))


def explain_broken_link(cls: str, before: Block, after: Block) -> str:
    """The message for blocks that do not simply follow each other."""
    return (
        f"{cls} changes what passes from {before.name} to {after.name} (a skip connection, a "
        "ControlNet residual or another sum between blocks), so its blocks cannot be skipped as "
        "one; use seam='latent'"
    )
