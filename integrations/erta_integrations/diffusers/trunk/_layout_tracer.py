"""Finds the trunk in the first network call of a branch, block by block."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.trunk._discovery import Block, skips
from erta_integrations.diffusers.trunk._layout import (
    Chain,
    Returned,
    Stage,
    Streams,
    glued,
    is_joined,
    own_parameters,
    version_of,
)


class Learner:
    """Watches the blocks of one network call; the longest chain among them is the trunk.

    Args:
        cls: Class of the network, for messages.
        depths: Numbers of blocks after which a policy wants the hidden states.
    """

    def __init__(self, cls: str, depths: frozenset[int] = frozenset()) -> None:
        self.cls = cls
        self.depths = depths
        self.chain = Chain()
        self.candidate = Chain()
        self.broken: dict[str, str] = {}
        self.earlier: dict[int, tuple[weakref.ref[Tensor], Block]] = {}

    def block_call(
        self,
        block: Block,
        inputs: dict[str, Tensor],
        original: Callable[[], Any],
        given: tuple[tuple[Any, ...], Mapping[str, Any]],
    ) -> Any:
        """Run a block, and note how it follows the one before.

        Raises:
            CapabilityError: It takes the output of a block further back.
        """
        held, joined = self._link(block, inputs)
        if held is None:
            self._keep_longest()
            self.candidate = Chain(inputs=inputs, given=given)
            self.candidate.versions = {name: version_of(v) for name, v in inputs.items()}
            self.earlier = {}
            held = {name: (name,) for name in inputs}
        self._refuse_skips(block, inputs)
        raw = original()
        returned = Returned.of(raw)
        own = own_parameters(block, returned.elements, inputs)
        content = tuple(held.get(name, ()) if name else () for name in own)
        chain = self.candidate
        chain.stages.append(Stage(block, own, isinstance(raw, Tensor), content, joined))
        chain.outputs = returned
        if len(chain.stages) in self.depths:
            chain.kept[len(chain.stages)] = returned
        for element in returned.elements:
            if element is not None and all(element is not value for value in inputs.values()):
                self.earlier[id(element)] = weakref.ref(element), block
        return raw

    def _link(
        self, block: Block, inputs: Mapping[str, Tensor]
    ) -> tuple[dict[str, Streams] | None, bool]:
        """What streams each input holds, if these are the outputs of the block before."""
        if not self.candidate.stages:
            return None, False
        before, returned = self.candidate.stages[-1], self.candidate.outputs
        pairs = [
            (element, content)
            for element, content in zip(returned.elements, before.content, strict=True)
            if element is not None
        ]
        held = {
            name: content
            for element, content in pairs
            for name, value in inputs.items()
            if value is element and content
        }
        if pairs and len(held) == len(pairs) and returned.untouched:
            return held, False
        if block.stack != before.block.stack and len(pairs) == 2 and all(c for _, c in pairs):
            for first, second in (pairs, pairs[::-1]):
                for name, value in inputs.items():
                    if is_joined(value, first[0], second[0]):
                        return {name: first[1] + second[1]}, True
        if block.stack == before.block.stack:
            self.broken[block.stack] = glued(self.cls, before.block, block)
        return None, False

    def _refuse_skips(self, block: Block, inputs: Mapping[str, Tensor]) -> None:
        latest = [e for e in self.candidate.outputs.elements if e is not None]
        for name, value in inputs.items():
            known = self.earlier.get(id(value))
            if known is None or known[0]() is not value or any(value is e for e in latest):
                continue
            taken = f"{name} of {block.name} is what {known[1].name} returned"
            raise CapabilityError(skips(self.cls, block, taken))

    def _keep_longest(self) -> None:
        if len(self.candidate.stages) >= len(self.chain.stages):
            self.chain = self.candidate

    def learned(self, stacks: Mapping[str, Any]) -> Chain:
        """The trunk, once the call is over.

        Raises:
            CapabilityError: The blocks do not form one trunk, or a probe lies behind its end.
        """
        self._keep_longest()
        chain, cls = self.chain, self.cls
        if not chain.stages:
            raise CapabilityError(f"{cls} ran none of its {', '.join(stacks)}")
        first, last = chain.stages[0], chain.stages[-1]
        for end in (first, last):
            if end.block.stack in self.broken:
                raise CapabilityError(self.broken[end.block.stack])
        if not any(first.own):
            raise CapabilityError(
                f"{cls}: {first.block.name} returns nothing of the shape of what it takes, so "
                "there is no residual; use seam='latent'"
            )
        if version_of(chain.inputs[chain.main]) != chain.versions[chain.main]:
            raise CapabilityError(
                f"{cls} writes into {chain.main} in place, so its residual is lost; use "
                "seam='latent'"
            )
        for element, content in zip(chain.outputs.elements, last.content, strict=True):
            if element is not None and not content:
                raise CapabilityError(
                    f"{cls}: {last.block.name} returns a tensor of shape "
                    f"{tuple(element.shape)} that stands for nothing it takes; use seam='latent'"
                )
        if chain.main not in chain.streams(len(chain.stages) - 1, chain.outputs):
            raise CapabilityError(
                f"{cls}: {last.block.name} does not return {chain.main}, so there is no residual; "
                "use seam='latent'"
            )
        self._check_probes(chain)
        return chain

    def _check_probes(self, chain: Chain) -> None:
        for depth in sorted(self.depths):
            if depth not in chain.kept:
                raise CapabilityError(
                    f"probe:{depth} is what block {depth} returns, but {self.cls} ran "
                    f"{len(chain.stages)} blocks as one trunk; ask for a smaller depth"
                )
            if chain.main not in chain.streams(depth - 1, chain.kept[depth]):
                raise CapabilityError(
                    f"probe:{depth} is not there: {chain.stages[depth - 1].block.name} of "
                    f"{self.cls} does not return {chain.main}; ask for another depth"
                )
