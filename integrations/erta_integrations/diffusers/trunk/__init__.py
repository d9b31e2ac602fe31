"""Trunk: see the documentation."""

from erta_integrations.diffusers.trunk._call import Run
from erta_integrations.diffusers.trunk._discovery import discover, first_blocks, inspect, longest
from erta_integrations.diffusers.trunk._layout import Chain
from erta_integrations.diffusers.trunk._patched import Trunk
from erta_integrations.diffusers.trunk._signals import Feature

__all__ = ["Chain", "Feature", "Run", "Trunk", "discover", "first_blocks", "inspect", "longest"]
