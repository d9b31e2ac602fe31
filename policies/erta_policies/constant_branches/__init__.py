"""Modules whose inputs do not change over the steps are computed once, exactly."""

from erta_policies.constant_branches._policy import ConstantBranches

__all__ = ["ConstantBranches"]
