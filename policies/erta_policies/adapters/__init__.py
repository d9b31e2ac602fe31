"""Policies that transform the decisions of the policies listed after them."""

from erta_policies.adapters.budget import Budget
from erta_policies.adapters.every_branch import EveryBranchAgrees
from erta_policies.adapters.limits import LastStep, MaxConsecutive, OnlyBetween, WarmUp

__all__ = ["Budget", "EveryBranchAgrees", "LastStep", "MaxConsecutive", "OnlyBetween", "WarmUp"]
