"""Adapters: policies that change the decisions of the policies listed after them."""

from erta_policies.adapters._budget import Budget
from erta_policies.adapters._every_branch import EveryBranchAgrees
from erta_policies.adapters._limits import LastStep, MaxConsecutive, OnlyBetween, WarmUp

__all__ = ["Budget", "EveryBranchAgrees", "LastStep", "MaxConsecutive", "OnlyBetween", "WarmUp"]
