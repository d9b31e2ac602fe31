"""What is driven of a pipeline: its scheduler and networks, as they were when it was attached."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from erta_framework import Seam
from erta_framework.modules import MODULES, ModuleSeam
from erta_integrations.diffusers.network import (
    find_guidance_capabilities,
    find_trial_capabilities,
    restore,
)
from erta_integrations.diffusers.pipeline._call_frame import CallFrame
from erta_integrations.diffusers.pipeline._checks import refuse_replaced_parts
from erta_integrations.diffusers.trunk import PatchedTrunk, find_text_signals


class SchedulerCopy(NamedTuple):
    """A deep copy of the scheduler, and the pipeline call that made it, by the `id` of its frame.

    The frame itself is not held, because it holds the copy.
    """

    scheduler: weakref.ref[object]
    maker: int


class PipelineParts:
    """The scheduler and the networks of a pipeline.

    Args:
        pipe: The pipeline.
        networks: The networks to drive, by component name.
        others: Networks that the pipeline steps with as well; they always run.
        seam: What a reused step leaves out.
        wanted: Signals that policies declare, with prefix.
        modules: The gates on places inside the networks; None where no policy owns any.

    Attributes:
        scheduler: The scheduler.
        copies: Its deep copies since it was attached.
        all_networks: Every network whose calls belong to a step.
        trunks: The block stack of each driven network, at the trunk seam.

    Raises:
        CapabilityError: The seam is the trunk, and a network has none.
    """

    def __init__(
        self,
        pipe: Any,
        networks: Mapping[str, nn.Module],
        others: Mapping[str, nn.Module],
        seam: Seam,
        wanted: frozenset[str],
        modules: ModuleSeam | None = None,
    ) -> None:
        self.modules = modules
        self.pipe = pipe
        self.scheduler = pipe.scheduler
        self.copies: list[SchedulerCopy] = []
        self._copying = threading.Lock()
        self.networks = networks
        self.all_networks = {**networks, **others}
        self.seam = seam
        self.trunks = {
            name: PatchedTrunk(name, network, wanted)
            for name, network in networks.items()
            if seam is Seam.TRUNK
        }

    @property
    def signals(self) -> frozenset[str]:
        """The signals that every network offers at this seam."""
        offered = [trunk.offered for trunk in self.trunks.values()]
        inside = frozenset.intersection(*offered) if offered else frozenset()
        return inside | find_text_signals(self.networks.values())

    @property
    def offered(self) -> frozenset[str]:
        """What policies may require, beside what the scheduler allows."""
        found = self.signals | {MODULES} | find_guidance_capabilities(self.networks)
        if self.seam is not Seam.LATENT:
            return found
        return found | find_trial_capabilities(self.networks)

    # ------------------------------------------------------------------------ copies
    def note_copy(self, twin: object) -> None:
        """A deep copy of the scheduler is made, within a call of a pipeline or outside."""
        made = SchedulerCopy(weakref.ref(twin), id(CallFrame.find().frame))
        with self._copying:
            known = [copy for copy in self.copies if copy.scheduler() not in (None, twin)]
            self.copies = [*known, made]

    def forget_copies(self, call: CallFrame) -> None:
        """The copies that a pipeline call made are no longer beside its scheduler."""
        made = id(call.frame)
        self.copies = [
            copy._replace(maker=0) if copy.maker == made else copy for copy in self.copies
        ]

    def find_copies(self, call: CallFrame) -> list[Any]:
        """The copies that a running pipeline call has made."""
        found = [copy.scheduler() for copy in self.copies if copy.maker == id(call.frame)]
        return [twin for twin in found if twin is not None]

    def release_copies(self) -> None:
        """Give the copies their own methods back."""
        for copy in self.copies:
            twin = copy.scheduler()
            for name in ("set_timesteps", "step") if twin is not None else ():
                restore(twin, name)
        self.copies = []

    # ------------------------------------------------------------------------ checks
    def shares_network(self, pipe: Any) -> bool:
        """Whether a pipeline has one of the networks, perhaps by another name."""
        held = {id(part) for part in getattr(pipe, "__dict__", {}).values()}
        networks = self.all_networks.items()
        return any(getattr(pipe, n, None) is net or id(net) in held for n, net in networks)

    def refuse_changes(self, pipe: Any, scheduler: Any) -> None:
        """Refuse a pipeline whose parts were replaced or compiled since it was attached.

        Args:
            pipe: The pipeline that runs: the attached one, or one that shares its scheduler.
            scheduler: The scheduler that it must have.

        Raises:
            ProtocolError: The scheduler or a network was replaced.
            CapabilityError: A network or a block was compiled.
        """
        refuse_replaced_parts(pipe, scheduler, self.all_networks)
        for trunk in self.trunks.values():
            trunk.refuse_compiled()
