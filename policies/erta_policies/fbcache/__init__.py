"""First-block cache (ParaAttention): reuse the other blocks while the first one changes little."""

from erta_policies.fbcache._policy import FBCache, FirstBlockRule, ProbeReuse

__all__ = ["FBCache", "FirstBlockRule", "ProbeReuse"]
