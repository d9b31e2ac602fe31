"""The block stack of one network, patched block by block."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.session import PREFIX
from erta_integrations.diffusers.network import PatchSet, compiled_in_place, patched
from erta_integrations.diffusers.trunk import _signals as signals
from erta_integrations.diffusers.trunk._discovery import Block, discover, first_blocks, longest
from erta_integrations.diffusers.trunk._embedded_times import EmbeddedTimes

if TYPE_CHECKING:
    from erta_integrations.diffusers.trunk._call import Run


class Trunk:
    """The blocks of one network, patched one by one; `running` drives one network call."""

    def __init__(self, name: str, network: nn.Module, wanted: frozenset[str]) -> None:
        self.name = name
        self.network = network
        self.cls = type(network).__name__
        self.stacks = discover(network)
        self.wanted = wanted
        self.depths = signals.depths_of(wanted)
        self.times = EmbeddedTimes(network, wanted)
        self.run: Run | None = None

    @property
    def offered(self) -> frozenset[str]:
        """The signals of this network."""
        return signals.available(self.network, first_blocks(self.stacks), longest(self.stacks))

    def install(self, patches: PatchSet) -> None:
        """Patch every block; a compiled block stays compiled, because the patch is around it."""
        for blocks in self.stacks.values():
            for block in blocks:
                place = "_compiled_call_impl" if compiled_in_place(block.module) else "forward"
                patches.apply(block.module, place, partial(self._block_call, block))
        self.times.install(patches, lambda: self.run is not None)

    def refuse_compiled(self) -> None:
        """Refuse blocks that were compiled around their patch, which would trace the engine.

        Raises:
            CapabilityError: Names the first such block and the remedy.
        """
        for blocks in self.stacks.values():
            for block in blocks:
                if patched(block.module, "forward") and compiled_in_place(block.module):
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
        if self.run is None:
            return original(*args, **kwargs)
        return self.run.block_call(block, original, args, kwargs)

    @contextmanager
    def running(self, run: Run) -> Generator[Run, None, None]:
        """Route the blocks to `run` within the block."""
        self.run = run
        try:
            yield run
        finally:
            self.run = None
            self.times.clear()

    def features(
        self,
        block: Block,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        times: Sequence[float],
        now: float,
    ) -> dict[str, signals.Feature]:
        """The signals that policies declared, computed when they ask.

        Args:
            block: The first block.
            args: What it was given.
            kwargs: The same by name.
            times: The scheduler's timestep at each step.
            now: That of this step.
        """
        found = self.times.features(times, now)
        if PREFIX + signals.MODULATED in self.wanted:
            found[signals.MODULATED] = lambda: signals.modulated_input(block.module, args, kwargs)
        return found
