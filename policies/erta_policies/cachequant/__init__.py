"""CacheQuant (arXiv 2503.01323): a grouped schedule, and lines that correct what is reused."""

from erta_policies.cachequant._correction import ChannelCorrection
from erta_policies.cachequant._grouping import group_evenly, group_steps, sum_groups
from erta_policies.cachequant._output_corrections import OutputCorrections, correct_outputs
from erta_policies.cachequant._outputs import KeptWeights, calibrate_outputs, keep_weights
from erta_policies.cachequant._profiler import KIND, FeatureProfiler
from erta_policies.cachequant._recipe import CacheQuant
from erta_policies.cachequant._schedule import GroupedSteps

__all__ = [
    "KIND",
    "CacheQuant",
    "ChannelCorrection",
    "FeatureProfiler",
    "GroupedSteps",
    "KeptWeights",
    "OutputCorrections",
    "calibrate_outputs",
    "correct_outputs",
    "group_evenly",
    "group_steps",
    "keep_weights",
    "sum_groups",
]
