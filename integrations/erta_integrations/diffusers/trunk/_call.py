"""One network call at the trunk seam: its blocks run, or their output is reused.

Over 250 lines because one state machine asks for the decision, runs the blocks and joins their
streams: each of the three depends on how far the other two have come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from erta_framework import Call, Reuse, Session
from erta_framework.errors import CapabilityError, ProtocolError
from erta_framework.session import FunctionNetwork, Site
from erta_integrations.diffusers.network import get_signature, read_output
from erta_integrations.diffusers.trunk._discovery import Block
from erta_integrations.diffusers.trunk._layout import BlockOutput, TrunkLayout, check_link
from erta_integrations.diffusers.trunk._layout_tracer import LayoutTracer
from erta_integrations.diffusers.trunk._patched import PatchedTrunk
from erta_integrations.diffusers.trunk._signals import LATENTS, PROBE, Feature

NO_SIGNALS: Mapping[str, Feature] = {}


class TrunkCall:
    """One network call at the trunk seam.

    Policies decide at the first block. A policy that probes after `m` blocks decides at block `m`
    instead: the blocks before it have run by then, and it runs itself as soon as the probe is
    read. So no block runs twice.

    Args:
        trunk: The network's blocks.
        session: Decides.
        site: Network, branch and trunk. The name of the network changes with its adapters.
        call: Runs the whole network on the arguments of this call.
        layout: The layout that an earlier call of this branch showed; None traces it in this one.
        latents: The latents among these arguments.
        find_layout: The layout of another branch, by its name, for a decision to reuse that one.
        text: Signals of the text.
        refuse: Raises if the blocks must not be left out.
    """

    def __init__(
        self,
        trunk: PatchedTrunk,
        session: Session,
        site: Site,
        call: partial[Any],
        layout: TrunkLayout | None,
        latents: Tensor,
        find_layout: Callable[[str], TrunkLayout | None] = lambda _: None,
        text: Mapping[str, Feature] = NO_SIGNALS,
        refuse: Callable[[], None] = lambda: None,
    ) -> None:
        self.trunk, self.session, self.call = trunk, session, call
        self.site, self.latents = site, latents
        self.find_layout, self.text, self.refuse = find_layout, text, refuse
        self.tracer = LayoutTracer(trunk.cls, trunk.depths) if layout is None else None
        self.layout = layout if layout is not None else TrunkLayout()
        self.started = time.perf_counter()
        self.asks_at = (
            max(trunk.depths, default=1) - 1
        )  # place of the block at which policies decide
        self.asked = False
        self.nested = False  # the network is running again, within this call, to compute its blocks
        self.position = 0  # place of the next block
        self.previous = BlockOutput()
        self.early: list[tuple[Any, BlockOutput]] = []  # of the blocks that ran before the decision
        self.pending: Callable[[], Any] | None = None  # runs the block at which policies decide
        self.decided: Call  # what the session decided
        self.computed: Tensor | None = None  # the image stream, if the blocks ran
        self.reused: Tensor | None = None  # the image stream, if they are left out
        self.others: dict[str, Tensor] = {}  # the other streams at the end of the trunk

    def run(self) -> Any:
        """The network's output; its blocks ran, or were left out.

        Raises:
            CapabilityError: The blocks do not form one trunk; says why.
            ProtocolError: The network ran other blocks than at its first call.
        """
        try:
            raw = self.call()
            if self.tracer is not None:
                corrected = self._finish_tracing(self.tracer, raw)
                if corrected is not None:  # the head runs again, on what the policy made of it
                    self.reused = corrected
                    raw = self.call()
            elif self.position != len(self.layout.blocks):
                raise ProtocolError(
                    f"{self.trunk.cls} ran {self.position} of the {len(self.layout.blocks)} blocks "
                    "that it ran in this branch before; use seam='latent'"
                )
        finally:
            self.layout.release()
        return raw

    def answer_block(
        self, block: Block, original: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer one call of a block."""
        bound = get_signature(type(block.module).forward).bind_partial(*args, **kwargs).arguments
        inputs = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
        run = partial(original, *args, **kwargs)
        if self.tracer is not None:
            return self.tracer.run_block(block, inputs, run, (args, kwargs))
        blocks = self.layout.blocks
        place = self.position
        if place >= len(blocks) or blocks[place].block is not block:
            if any(known.block is block for known in blocks):
                raise ProtocolError(
                    f"{self.trunk.cls} ran {block.name} out of the order of this branch's first "
                    "call; use seam='latent'"
                )
            return run()
        if place == 0:
            self._begin(inputs, (args, kwargs))
        else:
            check_link(self.trunk.cls, blocks[place - 1], blocks[place], self.previous, inputs)
        if place == self.asks_at and not self.nested and not self.asked:
            self._ask(run)
        last = place == len(blocks) - 1
        if self.reused is None:
            raw, self.previous = self._run_block(place, run)
            if last:
                raw = self._finish(raw)
        elif last:
            raw = self.layout.join_streams({**self.others, self.layout.main: self.reused})
        else:  # a block that is left out returns what it takes
            passed = tuple(inputs.get(name) if name else None for name in blocks[place].parameters)
            raw = passed[0] if blocks[place].bare else passed
            self.previous = BlockOutput.of(raw)
        self.position += 1
        return raw

    def probe(self, depth: int) -> Tensor:
        """The image stream after the first `depth` blocks, `[B, N, C]`.

        Raises:
            CapabilityError: The network has written into it since.
        """
        layout = self.layout
        if depth not in layout.probed and self.pending is not None:
            self._run_block(self.asks_at, self.pending)
        output = layout.probed[depth]
        if not output.untouched:
            raise CapabilityError(
                f"{self.trunk.cls} writes into what {layout.blocks[depth - 1].block.name} "
                f"returned, so probe:{depth} is lost; ask for another depth"
            )
        return layout.split_streams(depth - 1, output)[layout.main]

    # ------------------------------------------------------------------ the decision
    def _begin(
        self, inputs: dict[str, Tensor], arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    ) -> None:
        self.layout.inputs, self.layout.arguments = inputs, arguments
        if self.nested or self.reused is not None:
            return
        for name, residual in self.layout.residuals.items():
            if inputs[name].shape != residual.shape:
                raise ProtocolError(
                    f"{self.trunk.cls} was given {name} of shape {tuple(inputs[name].shape)} in "
                    f"branch {self.site.branch!r}, before {tuple(residual.shape)}; "
                    "use seam='latent'"
                )

    def _ask(self, run: Callable[[], Any]) -> None:
        """Ask for the decision at the block that `run` runs."""
        self.pending = run
        call = self._decide(self._compute)
        if call.reused:
            self.refuse()
        if call.reused or call.ran:  # a policy that decides may have run the network already
            self.reused = self.session.answer(self.decided)
            self.early = []
            if self.computed is None:  # the blocks did not run: the other streams are reused too
                self.others = self._reuse_others(call)
        self.pending, self.asked = None, True

    def _decide(self, compute: Callable[[], Tensor]) -> Call:
        layout = self.layout
        args, kwargs = layout.arguments
        times, now = self.session.info.times, self.session.time
        inside = self.trunk.make_features(layout.blocks[0].block, args, kwargs, times, now)
        features = {**self.text, **inside}
        for depth in self.trunk.depths:
            features[f"{PROBE}{depth}"] = partial(self.probe, depth)
        if layout.rule is not None:
            # without the conditions that a pipeline concatenates to its latents
            features[LATENTS] = partial(layout.rule.reference, self.latents)
        network = FunctionNetwork(compute, signals=features)
        x = layout.inputs[layout.main]
        self.decided = self.session.ask(self.site, x, network, started=self.started)
        return self.decided

    def _reuse_others(self, call: Call) -> dict[str, Tensor]:
        """The streams beside the image, with the residuals of this branch or of its replacement."""
        source, inputs = self.layout, self.layout.inputs
        if isinstance(call.decision, Reuse) and call.decision.branch is not None:
            source = self.find_layout(call.decision.branch) or source
        for name, residual in source.residuals.items():
            if inputs[name].shape != residual.shape:
                raise CapabilityError(
                    f"{self.trunk.cls} has {name} of shape {tuple(inputs[name].shape)} in branch "
                    f"{self.site.branch!r} and {tuple(residual.shape)} in the branch that replaces "
                    "it; use seam='latent'"
                )
        return {name: inputs[name] + residual for name, residual in source.residuals.items()}

    # -------------------------------------------------------------------- the blocks
    def _run_block(self, place: int, run: Callable[[], Any]) -> tuple[Any, BlockOutput]:
        """What a block returns; one that ran before the decision does not run again after it."""
        if place < len(self.early):
            found = self.early[place]
            if self.asked:
                self.early = []
            return found
        raw = run()
        output = BlockOutput.of(raw)
        if place <= self.asks_at and not self.asked:
            self.early.append((raw, output))
        if place + 1 in self.trunk.depths:
            self.layout.probed[place + 1] = output
        return raw, output

    def _compute(self) -> Tensor:
        """The trunk's output; the network runs again only if its blocks have not run yet."""
        if self.computed is None:
            layout = self.layout
            here = self.position, self.previous, layout.inputs, layout.arguments
            self.nested, self.position = True, 0
            try:
                drop_lora_scale(self.call)()
            finally:
                self.nested = False
                self.position, self.previous, layout.inputs, layout.arguments = here
        assert self.computed is not None
        return self.computed

    def _finish(self, raw: Any) -> Any:
        """What the last block, which has just run, is to return."""
        self._keep_streams(self.previous)
        if self.nested:
            return raw
        assert self.computed is not None
        output = self.session.answer(self.decided)
        if output is self.computed:
            return raw
        return self.layout.join_streams({**self.others, self.layout.main: output})

    def _keep_streams(self, output: BlockOutput) -> None:
        """Split the last block's output, and keep the residuals of the streams beside the image."""
        layout = self.layout
        for name, stream in layout.split_streams(len(layout.blocks) - 1, output).items():
            if name == layout.main:
                self.computed = stream
            else:
                self.others[name] = stream
                if self.session.engine.traits.memory.evaluations:
                    layout.residuals[name] = stream - layout.inputs[name]

    def _finish_tracing(self, tracer: LayoutTracer, raw: Any) -> Tensor | None:
        """Close the first call; the corrected output if a policy changed the computed one."""
        self.tracer = None
        layout = self.layout = tracer.finish(self.trunk.stacks)
        if self.session.engine.traits.reads_latents:
            layout.rule = read_output(raw, self.latents, self.trunk.name)[1].rule
        self._keep_streams(layout.outputs)
        output = self.computed
        assert output is not None
        self._decide(lambda: output)
        answer = self.session.answer(self.decided)
        self.position, self.asked = 0, True
        return None if answer is output else answer


def drop_lora_scale(call: partial[Any]) -> partial[Any]:
    """The same network call without the scale of LoRA layers, to be made within that call.

    diffusers multiplies the scale of every LoRA layer by `attention_kwargs["scale"]` while the
    network runs; a call inside that call must not multiply it again.
    """
    changed = {
        name: {key: item for key, item in value.items() if key != "scale"}
        for name, value in call.keywords.items()
        if name.endswith("attention_kwargs") and isinstance(value, Mapping) and "scale" in value
    }
    return partial(call.func, *call.args, **{**call.keywords, **changed}) if changed else call
