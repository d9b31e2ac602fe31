"""DiCache: a shallow probe decides when to reuse and where between two residuals to be."""

from erta_policies.dicache.policy import DiCache, ProbeRule, TwoAnchors

__all__ = ["DiCache", "ProbeRule", "TwoAnchors"]
