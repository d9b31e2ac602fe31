"""The block stack of a transformer: finds it, traces its layout and answers calls inside it.

`attach(..., seam="trunk")` skips the block stack alone; embedders and head run on every step.
"""

from erta_integrations.diffusers.trunk._call import TrunkCall
from erta_integrations.diffusers.trunk._discovery import discover
from erta_integrations.diffusers.trunk._inspect import inspect
from erta_integrations.diffusers.trunk._layout import TrunkLayout
from erta_integrations.diffusers.trunk._patched import PatchedTrunk
from erta_integrations.diffusers.trunk._signals import (
    Feature,
    check_signals,
    find_text_signals,
    find_trunk_signals,
    read_text_signals,
)

__all__ = [
    "Feature",
    "PatchedTrunk",
    "TrunkCall",
    "TrunkLayout",
    "check_signals",
    "discover",
    "find_text_signals",
    "find_trunk_signals",
    "inspect",
    "read_text_signals",
]
