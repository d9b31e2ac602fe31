"""Runs the block stack of one network call, or stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework import Seam, Session
from erta_framework.errors import CapabilityError, ProtocolError
from erta_integrations.diffusers import signals
from erta_integrations.diffusers.networks import signature_of
from erta_integrations.diffusers.patching import PatchSet
from erta_integrations.diffusers.streams import (
    TOKENS,
    Chain,
    Stage,
    Streams,
    elements_of,
    glued,
    is_joined,
    own_parameters,
)
from erta_integrations.diffusers.trunk import Block, discover, first_blocks


class Trunk:
    """The blocks of one network, patched one by one; `running` drives one network call."""

    def __init__(self, name: str, network: nn.Module, wanted: frozenset[str]) -> None:
        self.name = name
        self.network = network
        self.cls = type(network).__name__
        self.stacks = discover(network)
        self.wanted = wanted
        self.time_embedding: Tensor | None = None
        self.run: Run | None = None

    @property
    def offered(self) -> frozenset[str]:
        """The signals of this network."""
        return signals.available(self.network, first_blocks(self.stacks))

    def install(self, patches: PatchSet) -> None:
        """Patch every block; a compiled block stays compiled, because the patch is around it."""
        for blocks in self.stacks.values():
            for block in blocks:
                compiled = getattr(block.module, "_compiled_call_impl", None) is not None
                place = "_compiled_call_impl" if compiled else "forward"
                patches.apply(block.module, place, partial(self._block_call, block))
        embedding = signals.time_embedding_of(self.network)
        if signals.PREFIX + signals.TIME in self.wanted and embedding is not None:
            patches.apply(embedding, "forward", self._embedding_call)

    def _block_call(
        self, block: Block, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self.run is None:
            return original(*args, **kwargs)
        return self.run.block_call(block, original, args, kwargs)

    def _embedding_call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        embedded = original(*args, **kwargs)
        if self.run is not None:
            self.time_embedding = embedded
        return embedded

    @contextmanager
    def running(self, run: Run) -> Generator[Run, None, None]:
        """Route the blocks to `run` within the block."""
        self.run = run
        try:
            yield run
        finally:
            self.run, self.time_embedding = None, None

    def features(
        self, block: Block, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, signals.Feature]:
        """The signals that policies declared, computed when they ask."""
        every: dict[str, signals.Feature] = {
            signals.MODULATED: lambda: signals.modulated_input(block.module, args, kwargs),
            signals.TIME: self._embedded,
        }
        return {name: get for name, get in every.items() if signals.PREFIX + name in self.wanted}

    def _embedded(self) -> Tensor:
        if self.time_embedding is None:
            raise CapabilityError(f"{self.cls} did not embed its timestep before its blocks")
        return self.time_embedding


class Run:
    """One network call at the trunk seam.

    Args:
        trunk: The network's blocks.
        session: Decides.
        branch: Name of the branch.
        call: Runs the whole network on the arguments of this call.
        chain: What an earlier call of this branch showed; None learns it from this one.
    """

    def __init__(
        self,
        trunk: Trunk,
        session: Session,
        branch: str,
        call: Callable[[], Any],
        chain: Chain | None,
    ) -> None:
        self.trunk, self.session, self.branch, self.call = trunk, session, branch, call
        self.chain = chain if chain is not None else Chain()
        self.learning = chain is None
        self.nested = False
        self.position = 0
        self.previous: tuple[Tensor | None, ...] = ()
        self.reused: Tensor | None = None
        self.others: dict[str, Tensor] = {}
        self.computed: Tensor | None = None
        self.seen: dict[str, list[int]] = {}
        self.broken: dict[str, str] = {}
        self.candidate = Chain()

    def whole(self) -> Any:
        """The network's output, with its blocks run or stood in for.

        Raises:
            CapabilityError: The blocks do not form one trunk; says why.
        """
        raw = self.call()
        if not self.learning:
            self.chain.inputs = {}
            if self.position != len(self.chain.stages):
                raise ProtocolError(
                    f"{self.trunk.cls} ran {self.position} of the {len(self.chain.stages)} blocks "
                    "that it ran in this branch before; use seam='latent'"
                )
            return raw
        corrected = self._learned()
        if corrected is None:
            return raw
        self.learning, self.position = False, 0
        self.reused = corrected
        raw = self.call()
        self.chain.inputs = {}
        return raw

    def block_call(
        self, block: Block, original: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Answers one call of a block."""
        given = signature_of(type(block.module).forward).bind_partial(*args, **kwargs).arguments
        inputs = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        if self.learning:
            return self._learn(block, inputs, partial(original, *args, **kwargs), (args, kwargs))
        stages = self.chain.stages
        place = self.position
        if place >= len(stages) or stages[place].block is not block:
            if any(stage.block is block for stage in stages):
                raise ProtocolError(
                    f"{self.trunk.cls} ran {block.name} out of the order of this branch's first "
                    "call; use seam='latent'"
                )
            return original(*args, **kwargs)
        stage = stages[place]
        if place == 0:
            self._open(block, inputs, args, kwargs)
        else:
            self._check_link(stages[place - 1], stage, inputs)
        last = place == len(stages) - 1
        if self.reused is None:
            raw = original(*args, **kwargs)
            self.previous = elements_of(raw)
            if last:
                raw = self._close(raw)
        elif last:
            raw = self._stand_in(self.reused)
        else:
            self.previous = tuple(inputs.get(name) if name else None for name in stage.own)
            raw = self.previous[0] if stage.bare else self.previous
        self.position += 1
        return raw

    # --------------------------------------------------------------- later calls
    def _open(
        self, block: Block, inputs: dict[str, Tensor], args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        self.chain.inputs = inputs
        if self.nested or self.reused is not None:
            return
        for name, residual in self.chain.residuals.items():
            if inputs[name].shape != residual.shape:
                raise ProtocolError(
                    f"{self.trunk.cls} was given {name} of shape {tuple(inputs[name].shape)} in "
                    f"branch {self.branch!r}, before {tuple(residual.shape)}; use seam='latent'"
                )
        call = self.session.ask(
            inputs[self.chain.main],
            self._compute,
            branch=self.branch,
            model=self.trunk.name,
            seam=Seam.TRUNK,
            features=self.trunk.features(block, args, kwargs),
        )
        if call.reused or call.ran:  # a policy that decides may have run the network already
            self.reused = self.session.answer()
            if self.computed is None:  # not run after all: the other streams are reused too
                self.others = {n: inputs[n] + r for n, r in self.chain.residuals.items()}

    def _compute(self) -> Tensor:
        """The trunk's output; the network is run again only if its blocks have not run yet."""
        if self.computed is None:
            here = self.position, self.previous, self.chain.inputs
            self.nested = True
            try:
                self.call()
            finally:
                self.nested = False
                self.position, self.previous, self.chain.inputs = here
        assert self.computed is not None
        return self.computed

    def _close(self, raw: Any) -> Any:
        """Answer with the output of the last block, which has just run."""
        self._split(elements_of(raw))
        if self.nested:
            return raw
        assert self.computed is not None
        output = self.session.answer()
        return raw if output is self.computed else self._stand_in(output)

    def _split(self, elements: tuple[Tensor | None, ...]) -> None:
        """Take the streams out of the last block's output, and keep residuals of the others."""
        chain = self.chain
        for element, content in zip(elements, chain.stages[-1].content, strict=True):
            if element is None:
                continue
            sizes = [chain.inputs[name].shape[TOKENS] for name in content]
            offset = 0
            for name, size in zip(content, sizes, strict=True):
                part = element
                if len(content) > 1:
                    part = element.narrow(TOKENS, offset, size)
                    offset += size
                if name == chain.main:
                    self.computed = part
                else:
                    self.others[name] = part
                    if self.session.engine.needs.evaluations:
                        chain.residuals[name] = part - chain.inputs[name]

    def _stand_in(self, output: Tensor) -> Any:
        """A return value of the last block with this image stream."""
        stage = self.chain.stages[-1]
        streams = {**self.others, self.chain.main: output}
        elements = tuple(
            torch.cat([streams[name] for name in content], TOKENS)
            if len(content) > 1
            else (streams[content[0]] if content else None)
            for content in stage.content
        )
        self.chain.inputs = {}
        return elements[0] if stage.bare else elements

    def _check_link(self, before: Stage, stage: Stage, inputs: Mapping[str, Tensor]) -> None:
        if stage.joined:
            return
        for element in self.previous:
            if element is not None and not any(value is element for value in inputs.values()):
                raise CapabilityError(glued(self.trunk.cls, before.block, stage.block))

    # ---------------------------------------------------------------- first call
    def _learn(
        self,
        block: Block,
        inputs: dict[str, Tensor],
        original: Callable[[], Any],
        given: tuple[tuple[Any, ...], Mapping[str, Any]],
    ) -> Any:
        held, joined = self._link(block, inputs)
        if held is None:
            self._keep_longest()
            self.candidate = Chain(inputs=inputs, given=given)
            self.candidate.versions = {
                name: value._version for name, value in inputs.items() if not value.is_inference()
            }
            held = {name: (name,) for name in inputs}
        self.seen.setdefault(block.stack, []).append(block.index)
        raw = original()
        elements = elements_of(raw)
        own = own_parameters(block, elements, inputs)
        content = tuple(held.get(name, ()) if name else () for name in own)
        stage = Stage(block, own, isinstance(raw, Tensor), content, joined)
        self.candidate.stages.append(stage)
        self.candidate.outputs = elements
        return raw

    def _link(
        self, block: Block, inputs: Mapping[str, Tensor]
    ) -> tuple[dict[str, Streams] | None, bool]:
        """What streams each input holds, if these are the outputs of the block before."""
        if not self.candidate.stages:
            return None, False
        before = self.candidate.stages[-1]
        pairs = [
            (element, content)
            for element, content in zip(self.candidate.outputs, before.content, strict=True)
            if element is not None
        ]
        held = {
            name: content
            for element, content in pairs
            for name, value in inputs.items()
            if value is element and content
        }
        if pairs and len(held) == len(pairs):
            return held, False
        if block.stack != before.block.stack and len(pairs) == 2 and all(c for _, c in pairs):
            for first, second in (pairs, pairs[::-1]):
                for name, value in inputs.items():
                    if is_joined(value, first[0], second[0]):
                        return {name: first[1] + second[1]}, True
        if block.stack == before.block.stack:
            self.broken[block.stack] = glued(self.trunk.cls, before.block, block)
        return None, False

    def _keep_longest(self) -> None:
        if len(self.candidate.stages) >= len(self.chain.stages):
            self.chain = self.candidate

    def _learned(self) -> Tensor | None:
        """Close the first call; the corrected output where a policy changed the computed one."""
        self._keep_longest()
        chain, cls = self.chain, self.trunk.cls
        if not chain.stages:
            raise CapabilityError(f"{cls} ran none of its {', '.join(self.trunk.stacks)}")
        for end in (chain.stages[0], chain.stages[-1]):
            if end.block.stack in self.broken:
                raise CapabilityError(self.broken[end.block.stack])
        if not any(chain.stages[0].own):
            raise CapabilityError(
                f"{cls}: {chain.stages[0].block.name} returns nothing of the shape of what it "
                "takes, so there is no residual; use seam='latent'"
            )
        written = [n for n, v in chain.versions.items() if chain.inputs[n]._version != v]
        if chain.main in written:
            raise CapabilityError(
                f"{cls} writes into {chain.main} in place, so its residual is lost; use "
                "seam='latent'"
            )
        for element, content in zip(chain.outputs, chain.stages[-1].content, strict=True):
            if element is not None and not content:
                raise CapabilityError(
                    f"{cls}: {chain.stages[-1].block.name} returns a tensor of shape "
                    f"{tuple(element.shape)} that stands for nothing it takes; use seam='latent'"
                )
        self._split(chain.outputs)
        output = self.computed
        if output is None:
            raise CapabilityError(
                f"{cls}: {chain.stages[-1].block.name} does not return {chain.main}, so there is "
                "no residual; use seam='latent'"
            )
        args, kwargs = chain.given
        self.session.ask(
            chain.inputs[chain.main],
            lambda: output,
            branch=self.branch,
            model=self.trunk.name,
            seam=Seam.TRUNK,
            features=self.trunk.features(chain.stages[0].block, args, kwargs),
        )
        answer = self.session.answer()
        chain.inputs, chain.outputs, chain.given = {}, (), ((), {})
        self.candidate = Chain()
        return None if answer is output else answer
