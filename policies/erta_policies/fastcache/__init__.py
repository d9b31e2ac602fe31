"""FastCache (arXiv 2505.20353): blocks whose input has hardly moved are replaced."""

from erta_policies.fastcache._drift_gate import DriftGate
from erta_policies.fastcache._group import BlockGroup
from erta_policies.fastcache._recipe import FastCache
from erta_policies.fastcache._significance import accept_as_published, find_chi_square_ratio
from erta_policies.fastcache._token_split import TokenSplit
from erta_policies.shared import SurrogateProfiler

__all__ = [
    "BlockGroup",
    "DriftGate",
    "FastCache",
    "SurrogateProfiler",
    "TokenSplit",
    "accept_as_published",
    "find_chi_square_ratio",
]
