"""EasyCache: skips while the predicted relative change of the output stays small."""

from erta_policies.easycache.policy import EasyCache

__all__ = ["EasyCache"]
