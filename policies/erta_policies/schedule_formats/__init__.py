"""Schedule files of papers: ratios, paths, lists of components; and ours, as a list of policies."""

from erta_policies.schedule_formats._components import ComponentMasks
from erta_policies.schedule_formats._paths import EdgePaths
from erta_policies.schedule_formats._policies import Policies
from erta_policies.schedule_formats._ratios import ProfiledRatios, Ratios, describe_ratios

__all__ = [
    "ComponentMasks",
    "EdgePaths",
    "Policies",
    "ProfiledRatios",
    "Ratios",
    "describe_ratios",
]
