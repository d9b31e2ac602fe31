"""Patches the block stack of one network block by block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.session import PREFIX
from erta_integrations.diffusers.network import PatchSet, is_compiled_in_place, is_patched
from erta_integrations.diffusers.trunk._discovery import Block, discover
from erta_integrations.diffusers.trunk._embedded_times import EmbeddedTimes
from erta_integrations.diffusers.trunk._signals import (
    MODULATED,
    Feature,
    compute_modulated_input,
    find_trunk_signals,
    parse_depths,
)

AnswerBlock = Callable[[Block, Callable[..., Any], Any, Mapping[str, Any]], Any]
"""Answers a call of a block, from its original `forward`, `args` and `kwargs`."""


class RunningCall(threading.local):
    """What answers the blocks in this thread, while a network call runs."""

    answer: AnswerBlock | None = None


class PatchedTrunk:
    """The blocks of one network, each with a patch.

    Args:
        name: Name of the component.
        network: The network.
        wanted: Signals that policies declare, with prefix.

    Raises:
        CapabilityError: The network has no trunk.
    """

    def __init__(self, name: str, network: nn.Module, wanted: frozenset[str]) -> None:
        self.name = name
        self.network = network
        self.cls = type(network).__name__
        self.stacks = discover(network)
        self.wanted = wanted
        self.depths = parse_depths(wanted)
        self.times = EmbeddedTimes(network, wanted)
        self._running = RunningCall()

    @property
    def offered(self) -> frozenset[str]:
        """The signals of this network."""
        return find_trunk_signals(self.network, self.stacks)

    def install(self, patches: PatchSet) -> None:
        """Patch every block; a compiled block stays compiled, because the patch is around it."""
        for blocks in self.stacks.values():
            for block in blocks:
                place = "_compiled_call_impl" if is_compiled_in_place(block.module) else "forward"
                patches.apply(block.module, place, partial(self._block_call, block))
        self.times.install(patches, lambda: self._running.answer is not None)

    def refuse_compiled(self) -> None:
        """Refuse blocks that were compiled after `install`: the graph would contain our patches.

        Raises:
            CapabilityError: Names the first such block and the remedy.
        """
        for blocks in self.stacks.values():
            for block in blocks:
                if is_patched(block.module, "forward") and is_compiled_in_place(block.module):
                    raise CapabilityError(
                        f"{block.name} of {self.cls} was compiled after attach, which would trace "
                        "the engine; call compile_repeated_blocks() first, then attach"
                    )

    def _block_call(
        self,
        block: Block,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        answer = self._running.answer
        if answer is None:
            return original(*args, **kwargs)
        return answer(block, original, args, kwargs)

    @contextmanager
    def route_blocks(self, answer_block: AnswerBlock) -> Generator[None, None, None]:
        """Within the `with` block, `answer_block` answers every call of a block in this thread."""
        self._running.answer = answer_block
        try:
            yield
        finally:
            self._running.answer = None
            self.times.clear()

    def make_features(
        self,
        block: Block,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        times: Sequence[float],
        now: float,
    ) -> dict[str, Feature]:
        """The signals that policies declared; each is computed when a policy asks.

        Args:
            block: The first block.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            times: The scheduler's timestep at each step.
            now: The scheduler's timestep of this step.
        """
        found = self.times.make_features(times, now)
        if PREFIX + MODULATED in self.wanted:
            found[MODULATED] = lambda: compute_modulated_input(block.module, args, kwargs)
        return found
