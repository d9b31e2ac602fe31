"""Pipeline: see the documentation."""

from erta_integrations.diffusers.pipeline._driver import Driver
from erta_integrations.diffusers.pipeline._schedulers import (
    CAPABILITIES,
    Capability,
    Support,
    capabilities,
)

__all__ = ["CAPABILITIES", "Capability", "Driver", "Support", "capabilities"]
