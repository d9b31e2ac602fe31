"""EasyCache (arXiv 2507.02860): reuse while the predicted change of the output is small."""

from erta_policies.easycache._policy import EasyCache

__all__ = ["EasyCache"]
