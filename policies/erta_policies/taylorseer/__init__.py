"""TaylorSeer (arXiv 2503.06923), HiCache (arXiv 2508.16984) and FORA (arXiv 2407.01425)."""

from erta_policies.taylorseer._recipes import FORA, HiCache, TaylorSeer
from erta_policies.taylorseer._schedule import RefreshInterval

__all__ = ["FORA", "HiCache", "RefreshInterval", "TaylorSeer"]
