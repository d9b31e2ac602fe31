"""PreciseCache (arXiv 2603.00976): steps left out by LFCache, blocks by BlockCache."""

from erta_policies.precisecache._block_cache import BlockCache
from erta_policies.precisecache._recipe import PreciseCache

__all__ = ["BlockCache", "PreciseCache"]
