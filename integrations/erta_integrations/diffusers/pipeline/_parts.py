"""What is driven of a pipeline: its scheduler and networks, as they were when it was attached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from erta_framework import Seam
from erta_framework.modules import MODULES, ModuleSeam
from erta_integrations.diffusers.network import (
    find_guidance_capabilities,
    find_trial_capabilities,
)
from erta_integrations.diffusers.pipeline._checks import refuse_replaced_parts
from erta_integrations.diffusers.trunk import PatchedTrunk, find_text_signals


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

    def refuse_changes(self) -> None:
        """Refuse a pipeline whose parts were replaced or compiled since it was attached.

        Raises:
            ProtocolError: The scheduler or a network was replaced.
            CapabilityError: A network or a block was compiled.
        """
        refuse_replaced_parts(self.pipe, self.scheduler, self.all_networks)
        for trunk in self.trunks.values():
            trunk.refuse_compiled()
