"""DiCache (arXiv 2508.17356): a shallow probe says when to reuse, and which residual."""

from erta_policies.dicache._policy import DiCache, ProbeRule, TwoAnchors

__all__ = ["DiCache", "ProbeRule", "TwoAnchors"]
