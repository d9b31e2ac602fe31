"""`PIPELINE_FINDER`: finds the places of the networks of diffusers."""

from __future__ import annotations

from torch import nn

from erta_framework.modules import Place
from erta_integrations.diffusers.modules._discovery import find_places
from erta_integrations.diffusers.modules._unet import find_cut


class PipelineFinder:
    """Finds blocks, attention, MLPs, stages and cuts in a network of diffusers."""

    def find_places(self, network: nn.Module) -> tuple[Place, ...]:
        """Every place, in the order of execution."""
        return find_places(network)

    def find_cut(self, network: nn.Module, branch: int) -> Place:
        """The deep part of a UNet below one of its skip connections, as one place.

        Raises:
            CapabilityError: It is no UNet, or has no such connection.
        """
        return find_cut(network, branch)


PIPELINE_FINDER = PipelineFinder()
