"""SeaCache (arXiv 2602.18993): reuse while the latents, without their noise, hardly change."""

from erta_policies.seacache._filter import apply_sea_filter, axis_gain, mixing_at
from erta_policies.seacache._recipe import SeaCache
from erta_policies.seacache._rule import SeaCacheRule

__all__ = ["SeaCache", "SeaCacheRule", "apply_sea_filter", "axis_gain", "mixing_at"]
