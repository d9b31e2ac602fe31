"""LFCache of PreciseCache (arXiv 2603.00976): a trial forward on small latents decides."""

from erta_policies.lfcache._lowpass import low_frequencies, shrink, shrink_sizes
from erta_policies.lfcache._policy import LFCache

__all__ = ["LFCache", "low_frequencies", "shrink", "shrink_sizes"]
