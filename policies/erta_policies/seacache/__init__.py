"""SeaCache (arXiv 2602.18993): reuse while the latents, less their noise, hardly change."""

from erta_policies.seacache.filter import axis_gain, mixing_at, sea_filtered
from erta_policies.seacache.policy import SeaCacheRule
from erta_policies.seacache.recipe import SeaCache

__all__ = ["SeaCache", "SeaCacheRule", "axis_gain", "mixing_at", "sea_filtered"]
