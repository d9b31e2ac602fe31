"""d2Cache: masked tokens that are nearly certain, and tokens that others attend to."""

from erta_policies.d2cache._policy import D2Cache

__all__ = ["D2Cache"]
