"""FasterCache (arXiv 2410.19355): attention is extrapolated, guidance runs one branch of two."""

from erta_policies.fastercache._attention import AttentionExtrapolation
from erta_policies.fastercache._bands import BranchDelta, keep_low
from erta_policies.fastercache._cfg_cache import CfgCache
from erta_policies.fastercache._presets import PRESETS
from erta_policies.fastercache._recipe import FasterCache
from erta_policies.fastercache._rules import AttentionRule, GuidanceRule, Preset, Ramp
from erta_policies.fastercache._schedules import AttentionPlan, GuidancePlan

__all__ = [
    "PRESETS",
    "AttentionExtrapolation",
    "AttentionPlan",
    "AttentionRule",
    "BranchDelta",
    "CfgCache",
    "FasterCache",
    "GuidancePlan",
    "GuidanceRule",
    "Preset",
    "Ramp",
    "keep_low",
]
