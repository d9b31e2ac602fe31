"""H2-Cache (arXiv 2510.27171), and the first-block gate that FBCache and DBCache are made of."""

from erta_policies.h2cache._first_block import FirstBlockGate
from erta_policies.h2cache._policy import H2Cache, count_outcomes

__all__ = ["FirstBlockGate", "H2Cache", "count_outcomes"]
