"""DiCache (arXiv 2508.17356): a shallow probe says when to reuse, and which residual."""

from erta_policies.dicache._probe_rule import ProbeRule
from erta_policies.dicache._recipe import DiCache
from erta_policies.dicache._two_anchors import TwoAnchors

__all__ = ["DiCache", "ProbeRule", "TwoAnchors"]
