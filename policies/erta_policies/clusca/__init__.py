"""ClusCa (arXiv 2509.10312): at forecast steps one token of each cluster runs, and is spread."""

from erta_policies.clusca._clusters import find_clusters, pick_tokens, spread_tokens
from erta_policies.clusca._policy import ClusCa, ClusterRefresh

__all__ = ["ClusCa", "ClusterRefresh", "find_clusters", "pick_tokens", "spread_tokens"]
