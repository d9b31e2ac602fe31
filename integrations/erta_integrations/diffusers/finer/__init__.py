"""The exact solution of an unmodified pipeline's request, on a grid many times as fine."""

from erta_integrations.diffusers.finer._solve import solve_pipeline

__all__ = ["solve_pipeline"]
