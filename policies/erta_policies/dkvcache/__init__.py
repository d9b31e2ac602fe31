"""dKV-Cache: delayed caching of keys and values for masked language models."""

from erta_policies.dkvcache._decode import DKVCacheDecode
from erta_policies.dkvcache._greedy import DKVCacheGreedy
from erta_policies.dkvcache._prefill import DKVCachePD, DKVCachePrefill

__all__ = ["DKVCacheDecode", "DKVCacheGreedy", "DKVCachePD", "DKVCachePrefill"]
