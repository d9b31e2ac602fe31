"""Runs the block stack of one network call, or stands in for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erta_framework import Call, Reuse, Session
from erta_framework.errors import CapabilityError, ProtocolError
from erta_framework.session import FunctionNetwork, Site
from erta_integrations.diffusers.network import read_output, signature_of
from erta_integrations.diffusers.trunk import _signals as signals
from erta_integrations.diffusers.trunk._discovery import Block
from erta_integrations.diffusers.trunk._layout import TOKENS, Chain, Returned, Stage, glued
from erta_integrations.diffusers.trunk._layout_tracer import Learner
from erta_integrations.diffusers.trunk._patched import Trunk

NO_SIGNALS: Mapping[str, signals.Feature] = {}


class Run:
    """One network call at the trunk seam.

    Policies are asked at the first block; where one wants a probe after `m` blocks, at block `m`,
    so that no block runs twice: those before it have run, and it runs itself as soon as the probe
    is asked for.

    Args:
        trunk: The network's blocks.
        session: Decides.
        site: Network (and its weights, where they changed within the request), branch and trunk.
        call: Runs the whole network on the arguments of this call.
        chain: What an earlier call of this branch showed; None learns it from this one.
        latents: The latents among these arguments.
        lent: What another branch's calls showed, by its name, where it stands in for this one.
        text: Signals of the text.
    """

    def __init__(
        self,
        trunk: Trunk,
        session: Session,
        site: Site,
        call: partial[Any],
        chain: Chain | None,
        latents: Tensor,
        lent: Callable[[str], Chain | None] = lambda _: None,
        text: Mapping[str, signals.Feature] = NO_SIGNALS,
    ) -> None:
        self.trunk, self.session, self.call = trunk, session, call
        self.site, self.latents = site, latents
        self.lent, self.text = lent, text
        self.learner = Learner(trunk.cls, trunk.depths) if chain is None else None
        self.chain = chain if chain is not None else Chain()
        self.asks_at = max(trunk.depths, default=1) - 1
        self.asked = self.nested = False
        self.started = time.perf_counter()
        self.position = 0
        self.previous = Returned()
        self.early: list[tuple[Any, Returned]] = []  # of the blocks that ran before the decision
        self.pending: Callable[[], Any] | None = None  # the block at which policies are asked
        self.reused: Tensor | None = None
        self.others: dict[str, Tensor] = {}
        self.decided: Call  # what the session said of this call
        self.computed: Tensor | None = None

    def whole(self) -> Any:
        """The network's output, with its blocks run or stood in for.

        Raises:
            CapabilityError: The blocks do not form one trunk; says why.
        """
        try:
            raw = self.call()
            if self.learner is not None:
                corrected = self._learned(self.learner, raw)
                if corrected is not None:
                    self.reused = corrected
                    raw = self.call()
            elif self.position != len(self.chain.stages):
                raise ProtocolError(
                    f"{self.trunk.cls} ran {self.position} of the {len(self.chain.stages)} blocks "
                    "that it ran in this branch before; use seam='latent'"
                )
        finally:
            self.chain.release()
        return raw

    def block_call(
        self, block: Block, original: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Answers one call of a block."""
        given = signature_of(type(block.module).forward).bind_partial(*args, **kwargs).arguments
        inputs = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        run = partial(original, *args, **kwargs)
        if self.learner is not None:
            return self.learner.block_call(block, inputs, run, (args, kwargs))
        stages = self.chain.stages
        place = self.position
        if place >= len(stages) or stages[place].block is not block:
            if any(stage.block is block for stage in stages):
                raise ProtocolError(
                    f"{self.trunk.cls} ran {block.name} out of the order of this branch's first "
                    "call; use seam='latent'"
                )
            return run()
        stage = stages[place]
        if place == 0:
            self._open(inputs, (args, kwargs))
        else:
            self._check_link(stages[place - 1], stage, inputs)
        if place == self.asks_at and not self.nested and not self.asked:
            self._ask(run)
        last = place == len(stages) - 1
        if self.reused is None:
            raw, self.previous = self._block(place, run)
            if last:
                raw = self._close(raw)
        elif last:
            raw = self._stand_in(self.reused)
        else:
            through = tuple(inputs.get(name) if name else None for name in stage.own)
            raw = through[0] if stage.bare else through
            self.previous = Returned.of(raw)
        self.position += 1
        return raw

    def probe(self, depth: int) -> Tensor:
        """The image stream after the first `depth` blocks, `[B, N, C]`.

        Raises:
            CapabilityError: The network has written into it since.
        """
        chain = self.chain
        if depth not in chain.kept and self.pending is not None:
            self._block(self.asks_at, self.pending)
        returned = chain.kept[depth]
        if not returned.untouched:
            raise CapabilityError(
                f"{self.trunk.cls} writes into what {chain.stages[depth - 1].block.name} returned, "
                f"so probe:{depth} is lost; ask for another depth"
            )
        return chain.streams(depth - 1, returned)[chain.main]

    # ------------------------------------------------------------------ one call
    def _open(
        self, inputs: dict[str, Tensor], given: tuple[tuple[Any, ...], Mapping[str, Any]]
    ) -> None:
        self.chain.inputs, self.chain.given = inputs, given
        if self.nested or self.reused is not None:
            return
        for name, residual in self.chain.residuals.items():
            if inputs[name].shape != residual.shape:
                raise ProtocolError(
                    f"{self.trunk.cls} was given {name} of shape {tuple(inputs[name].shape)} in "
                    f"branch {self.site.branch!r}, before {tuple(residual.shape)}; "
                    "use seam='latent'"
                )

    def _ask(self, run: Callable[[], Any]) -> None:
        """Have the call decided, at the block that `run` runs."""
        self.pending = run
        call = self._decided(self._compute)
        if call.reused or call.ran:  # a policy that decides may have run the network already
            self.reused = self.session.answer(self.decided)
            self.early = []
            if self.computed is None:  # not run after all: the other streams are reused too
                self.others = self._others(call)
        self.pending, self.asked = None, True

    def _others(self, call: Call) -> dict[str, Tensor]:
        """The streams beside the image, with the residuals of the branch that stands in."""
        source, inputs = self.chain, self.chain.inputs
        if isinstance(call.decision, Reuse) and call.decision.branch is not None:
            source = self.lent(call.decision.branch) or source
        for name, residual in source.residuals.items():
            if inputs[name].shape != residual.shape:
                raise CapabilityError(
                    f"{self.trunk.cls} has {name} of shape {tuple(inputs[name].shape)} in branch "
                    f"{self.site.branch!r} and {tuple(residual.shape)} in the one that is to stand "
                    "in for it; use seam='latent'"
                )
        return {name: inputs[name] + residual for name, residual in source.residuals.items()}

    def _decided(self, compute: Callable[[], Tensor]) -> Call:
        chain = self.chain
        args, kwargs = chain.given
        times, now = self.session.info.times, self.session.time
        inside = self.trunk.features(chain.stages[0].block, args, kwargs, times, now)
        features = {**self.text, **inside}
        for depth in self.trunk.depths:
            features[f"{signals.PROBE}{depth}"] = partial(self.probe, depth)
        if chain.rule is not None:
            # without the conditions that a pipeline joins to its latents
            features[signals.LATENTS] = partial(chain.rule.reference, self.latents)
        network = FunctionNetwork(compute, signals=features)
        x = chain.inputs[chain.main]
        self.decided = self.session.ask(self.site, x, network, started=self.started)
        return self.decided

    def _block(self, place: int, run: Callable[[], Any]) -> tuple[Any, Returned]:
        """What a block returns; one that ran before the decision does not run again after it."""
        if place < len(self.early):
            found = self.early[place]
            if self.asked:
                self.early = []
            return found
        raw = run()
        returned = Returned.of(raw)
        if place <= self.asks_at and not self.asked:
            self.early.append((raw, returned))
        if place + 1 in self.trunk.depths:
            self.chain.kept[place + 1] = returned
        return raw, returned

    def _compute(self) -> Tensor:
        """The trunk's output; the network is run again only if its blocks have not run yet."""
        if self.computed is None:
            chain = self.chain
            here = self.position, self.previous, chain.inputs, chain.given
            self.nested, self.position = True, 0
            try:
                unscaled(self.call)()
            finally:
                self.nested = False
                self.position, self.previous, chain.inputs, chain.given = here
        assert self.computed is not None
        return self.computed

    def _close(self, raw: Any) -> Any:
        """Answer with the output of the last block, which has just run."""
        self._split(self.previous)
        if self.nested:
            return raw
        assert self.computed is not None
        output = self.session.answer(self.decided)
        return raw if output is self.computed else self._stand_in(output)

    def _split(self, returned: Returned) -> None:
        """Take the streams out of the last block's output, and keep residuals of the others."""
        chain = self.chain
        for name, stream in chain.streams(len(chain.stages) - 1, returned).items():
            if name == chain.main:
                self.computed = stream
            else:
                self.others[name] = stream
                if self.session.engine.traits.memory.evaluations:
                    chain.residuals[name] = stream - chain.inputs[name]

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
        return elements[0] if stage.bare else elements

    def _check_link(self, before: Stage, stage: Stage, inputs: Mapping[str, Tensor]) -> None:
        if stage.joined:
            return
        for place, element in enumerate(self.previous.elements):
            if element is None:
                continue
            passed = any(value is element for value in inputs.values())
            if not passed or not self.previous.is_untouched(place):
                raise CapabilityError(glued(self.trunk.cls, before.block, stage.block))

    def _learned(self, learner: Learner, raw: Any) -> Tensor | None:
        """Close the first call; the corrected output where a policy changed the computed one."""
        self.learner = None
        chain = self.chain = learner.learned(self.trunk.stacks)
        if self.session.engine.traits.reads_latents:
            chain.rule = read_output(raw, self.latents, self.trunk.name)[1].rule
        self._split(chain.outputs)
        output = self.computed
        assert output is not None
        self._decided(lambda: output)
        answer = self.session.answer(self.decided)
        self.position, self.asked = 0, True
        return None if answer is output else answer


def unscaled(call: partial[Any]) -> partial[Any]:
    """A network call to make within that same call, whose adapters are scaled by then.

    diffusers multiplies the scale of every LoRA layer by `attention_kwargs["scale"]` for as long as
    the network runs; a call inside that call must not do so again.
    """
    changed = {
        name: {key: item for key, item in value.items() if key != "scale"}
        for name, value in call.keywords.items()
        if name.endswith("attention_kwargs") and isinstance(value, Mapping) and "scale" in value
    }
    return partial(call.func, *call.args, **{**call.keywords, **changed}) if changed else call
