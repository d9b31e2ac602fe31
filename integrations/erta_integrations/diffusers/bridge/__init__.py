"""Other people's caches on an unmodified pipeline, with the trace that our policies leave."""

from erta_integrations.diffusers.bridge.attachment import Bridge, bridge
from erta_integrations.diffusers.bridge.rivals import RIVALS, Rival, Target

__all__ = ["RIVALS", "Bridge", "Rival", "Target", "bridge"]
