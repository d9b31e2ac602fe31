"""Drives an unmodified pipeline: turns the calls that it makes into the verbs of a session."""

from erta_integrations.diffusers.pipeline._capabilities import (
    CAPABILITIES,
    Capability,
    Support,
    capabilities,
)
from erta_integrations.diffusers.pipeline._driver import Driver
from erta_integrations.diffusers.pipeline._levels import (
    Levels,
    find_level_capabilities,
    find_levels,
    mix_exploding,
    mix_flow,
    mix_noise_level,
    mix_ratio,
)
from erta_integrations.diffusers.pipeline._prediction import explain_noise, read_prediction
from erta_integrations.diffusers.pipeline._schedulers import read_schedule

__all__ = [
    "CAPABILITIES",
    "Capability",
    "Driver",
    "Levels",
    "Support",
    "capabilities",
    "explain_noise",
    "find_level_capabilities",
    "find_levels",
    "mix_exploding",
    "mix_flow",
    "mix_noise_level",
    "mix_ratio",
    "read_prediction",
    "read_schedule",
]
