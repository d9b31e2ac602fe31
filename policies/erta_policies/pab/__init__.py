"""PAB (arXiv 2408.12588): attention outputs are broadcast over steps, each kind for its range."""

from erta_policies.pab._policy import PAB

__all__ = ["PAB"]
