"""Guidance: which branches of a step are evaluated, and how their outputs combine."""

from erta_framework.sampling.guidance._rules import CFG, Branch, Guidance, NoGuidance

__all__ = ["CFG", "Branch", "Guidance", "NoGuidance"]
