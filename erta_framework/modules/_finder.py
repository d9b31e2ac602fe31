"""`Finder`: how the places of a network are found; `PlaceFinder` finds them by structure."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from erta_framework.modules._discovery import find_places
from erta_framework.modules._places import Place
from erta_framework.modules._unet import find_cut


class Finder(Protocol):
    """Finds the places of a network."""

    def find_places(self, network: nn.Module) -> tuple[Place, ...]:
        """Every place, in the order of execution.

        Raises:
            CapabilityError: There is none.
        """
        ...

    def find_cut(self, network: nn.Module, branch: int) -> Place:
        """The deep part of a UNet below one of its skip connections, as one place.

        Raises:
            CapabilityError: It is no UNet, or has no such connection.
        """
        ...


class PlaceFinder:
    """Finds blocks, attention, MLPs, stages and cuts in any network, by its structure alone.

    Example:
        >>> from erta_framework.testing import BlockFlow
        >>> places = PlaceFinder().find_places(BlockFlow())
        >>> places[0].kind, places[0].path
        ('block', 'blocks.0')
    """

    def find_places(self, network: nn.Module) -> tuple[Place, ...]:
        """Every place, in the order of execution; see `erta_framework.modules.find_places`."""
        return find_places(network)

    def find_cut(self, network: nn.Module, branch: int) -> Place:
        """The deep part of a UNet below one of its skip connections, as one place.

        Raises:
            CapabilityError: It is no UNet, or has no such connection.
        """
        return find_cut(network, branch)
