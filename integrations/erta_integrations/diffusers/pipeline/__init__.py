"""Drives an unmodified pipeline: turns the calls that it makes into the verbs of a session."""

from erta_integrations.diffusers.pipeline._capabilities import (
    CAPABILITIES,
    Capability,
    Support,
    capabilities,
)
from erta_integrations.diffusers.pipeline._driver import Driver
from erta_integrations.diffusers.pipeline._engines import Rechoose
from erta_integrations.diffusers.pipeline._levels import find_level_capabilities
from erta_integrations.diffusers.pipeline._prediction import explain_noise

__all__ = [
    "CAPABILITIES",
    "Capability",
    "Driver",
    "Rechoose",
    "Support",
    "capabilities",
    "explain_noise",
    "find_level_capabilities",
]
