"""First-block cache: skips the other blocks while the first one changes little."""

from erta_policies.fbcache.policy import FBCache, FirstBlockRule, ProbeReuse

__all__ = ["FBCache", "FirstBlockRule", "ProbeReuse"]
