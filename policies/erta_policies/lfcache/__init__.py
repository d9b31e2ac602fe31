"""LFCache of PreciseCache (arXiv 2603.00976): a trial forward on small latents decides."""

from erta_policies.lfcache.lowpass import low_frequencies, shrunk, shrunk_sizes
from erta_policies.lfcache.policy import LFCache

__all__ = ["LFCache", "low_frequencies", "shrunk", "shrunk_sizes"]
