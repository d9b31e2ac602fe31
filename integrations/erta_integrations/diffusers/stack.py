"""The block stack of one network, patched block by block."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import signals
from erta_integrations.diffusers.networks import compiled_in_place
from erta_integrations.diffusers.patching import PatchSet, patched
from erta_integrations.diffusers.trunk import Block, discover, first_blocks, longest

if TYPE_CHECKING:
    from erta_integrations.diffusers.chain import Run


class Trunk:
    """The blocks of one network, patched one by one; `running` drives one network call."""

    def __init__(self, name: str, network: nn.Module, wanted: frozenset[str]) -> None:
        self.name = name
        self.network = network
        self.cls = type(network).__name__
        self.stacks = discover(network)
        self.wanted = wanted
        self.depths = signals.depths_of(wanted)
        self.times: dict[str, Tensor] = {}
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
        for name, module in (
            (signals.TIME, signals.time_embedding_of(self.network)),
            (signals.PROJECTION, signals.time_projection_of(self.network)),
        ):
            if signals.PREFIX + name in self.wanted and module is not None:
                patches.apply(module, "forward", partial(self._embedding_call, name))

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

    def _embedding_call(
        self,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        embedded = original(*args, **kwargs)
        if self.run is not None:
            self.times[name] = embedded
        return embedded

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
        self, block: Block, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, signals.Feature]:
        """The signals that policies declared, computed when they ask."""
        every: dict[str, signals.Feature] = {
            signals.MODULATED: lambda: signals.modulated_input(block.module, args, kwargs),
            signals.TIME: partial(self._embedded, signals.TIME),
            signals.PROJECTION: partial(self._embedded, signals.PROJECTION),
        }
        return {name: get for name, get in every.items() if signals.PREFIX + name in self.wanted}

    def _embedded(self, name: str) -> Tensor:
        if name not in self.times:
            raise CapabilityError(f"{self.cls} did not embed its timestep before its blocks")
        return self.times[name]
