"""DeepCache (arXiv 2312.00858): the deep part of a UNet is reused, the shallow part runs."""

from erta_policies.deepcache._policy import DeepCache
from erta_policies.deepcache._schedule import CenteredSteps, center_steps

__all__ = ["CenteredSteps", "DeepCache", "center_steps"]
