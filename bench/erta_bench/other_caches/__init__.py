"""Other people's caches on an unmodified pipeline, with the trace that our policies leave."""

from erta_bench.other_caches.attachment import Bridge, bridge
from erta_bench.other_caches.rivals import RIVALS, Rival, Target

__all__ = ["RIVALS", "Bridge", "Rival", "Target", "bridge"]
