"""Traces the layout of a trunk in the first network call of a branch, block by block."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.trunk._discovery import Block, explain_skips
from erta_integrations.diffusers.trunk._layout import (
    BlockIO,
    BlockOutput,
    Streams,
    TrunkLayout,
    explain_broken_link,
    get_version,
    is_concatenation,
    match_parameters,
)


class LayoutTracer:
    """Watches the blocks of one network call; the longest run of linked blocks is the trunk.

    A block is linked to the one before if it takes the very tensors that the other returned.

    Args:
        cls: Class of the network, for messages.
        depths: Numbers of blocks after which a policy probes the hidden states.

    Attributes:
        longest: The longest run so far.
        current: The run that the next block may continue.
        broken: Why a list of blocks is no single run, by name of the list.
        earlier: The tensors that blocks of the current run returned, by id, and who returned them.
    """

    def __init__(self, cls: str, depths: frozenset[int] = frozenset()) -> None:
        self.cls = cls
        self.depths = depths
        self.longest = TrunkLayout()
        self.current = TrunkLayout()
        self.broken: dict[str, str] = {}
        self.earlier: dict[int, tuple[weakref.ref[Tensor], Block]] = {}

    def run_block(
        self,
        block: Block,
        inputs: dict[str, Tensor],
        run: Callable[[], Any],
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
    ) -> Any:
        """Run a block, and note how it is linked to the one before.

        Raises:
            CapabilityError: It takes the output of a block further back.
        """
        held, joined = self._find_link(block, inputs)
        if held is None:
            self._keep_longest()
            self.current = TrunkLayout(inputs=inputs, arguments=arguments)
            self.current.versions = {name: get_version(v) for name, v in inputs.items()}
            self.earlier = {}
            held = {name: (name,) for name in inputs}
        self._refuse_skips(block, inputs)
        raw = run()
        output = BlockOutput.of(raw)
        parameters = match_parameters(block, output.elements, inputs)
        streams = tuple(held.get(name, ()) if name else () for name in parameters)
        layout = self.current
        layout.blocks.append(BlockIO(block, parameters, isinstance(raw, Tensor), streams, joined))
        layout.outputs = output
        if len(layout.blocks) in self.depths:
            layout.probed[len(layout.blocks)] = output
        for element in output.elements:
            if element is not None and all(element is not value for value in inputs.values()):
                self.earlier[id(element)] = weakref.ref(element), block
        return raw

    def finish(self, stacks: Mapping[str, Any]) -> TrunkLayout:
        """The layout of the trunk, once the call is over.

        Raises:
            CapabilityError: The blocks do not form one trunk, or a probe is behind its end.
        """
        self._keep_longest()
        layout, cls = self.longest, self.cls
        if not layout.blocks:
            raise CapabilityError(f"{cls} ran none of its {', '.join(stacks)}")
        first, last = layout.blocks[0], layout.blocks[-1]
        for end in (first, last):
            if end.block.stack in self.broken:
                raise CapabilityError(self.broken[end.block.stack])
        if not any(first.parameters):
            raise CapabilityError(
                f"{cls}: {first.block.name} returns nothing of the shape of what it takes, so "
                "there is no residual; use seam='latent'"
            )
        if get_version(layout.inputs[layout.main]) != layout.versions[layout.main]:
            raise CapabilityError(
                f"{cls} writes into {layout.main} in place, so its residual is lost; use "
                "seam='latent'"
            )
        for element, streams in zip(layout.outputs.elements, last.streams, strict=True):
            if element is not None and not streams:
                raise CapabilityError(
                    f"{cls}: {last.block.name} returns a tensor of shape "
                    f"{tuple(element.shape)} that matches nothing it takes; use seam='latent'"
                )
        if layout.main not in layout.split_streams(len(layout.blocks) - 1, layout.outputs):
            raise CapabilityError(
                f"{cls}: {last.block.name} does not return {layout.main}, so there is no residual; "
                "use seam='latent'"
            )
        self._check_probes(layout)
        return layout

    def _find_link(
        self, block: Block, inputs: Mapping[str, Tensor]
    ) -> tuple[dict[str, Streams] | None, bool]:
        """The streams that each input holds, if the inputs are the outputs of the block before.

        Also whether these were concatenated on the way. No streams: the block begins a new run.
        """
        if not self.current.blocks:
            return None, False
        before, output = self.current.blocks[-1], self.current.outputs
        pairs = [
            (element, streams)
            for element, streams in zip(output.elements, before.streams, strict=True)
            if element is not None
        ]
        held = {
            name: streams
            for element, streams in pairs
            for name, value in inputs.items()
            if value is element and streams
        }
        if pairs and len(held) == len(pairs) and output.untouched:
            return held, False
        if block.stack != before.block.stack and len(pairs) == 2 and all(s for _, s in pairs):
            # between two lists, image and text may be concatenated to one tensor
            for first, second in (pairs, pairs[::-1]):
                for name, value in inputs.items():
                    if is_concatenation(value, first[0], second[0]):
                        return {name: first[1] + second[1]}, True
        if block.stack == before.block.stack:
            self.broken[block.stack] = explain_broken_link(self.cls, before.block, block)
        return None, False

    def _refuse_skips(self, block: Block, inputs: Mapping[str, Tensor]) -> None:
        latest = [e for e in self.current.outputs.elements if e is not None]
        for name, value in inputs.items():
            known = self.earlier.get(id(value))
            if known is None or known[0]() is not value or any(value is e for e in latest):
                continue
            taken = f"{name} of {block.name} is what {known[1].name} returned"
            raise CapabilityError(explain_skips(self.cls, block, taken))

    def _keep_longest(self) -> None:
        if len(self.current.blocks) >= len(self.longest.blocks):
            self.longest = self.current

    def _check_probes(self, layout: TrunkLayout) -> None:
        for depth in sorted(self.depths):
            if depth not in layout.probed:
                raise CapabilityError(
                    f"probe:{depth} is what block {depth} returns, but {self.cls} ran "
                    f"{len(layout.blocks)} blocks as one trunk; ask for a smaller depth"
                )
            if layout.main not in layout.split_streams(depth - 1, layout.probed[depth]):
                raise CapabilityError(
                    f"probe:{depth} is not there: {layout.blocks[depth - 1].block.name} of "
                    f"{self.cls} does not return {layout.main}; ask for another depth"
                )
