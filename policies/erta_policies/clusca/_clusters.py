"""Clusters of tokens, one token of each, and what it says about the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def find_clusters(tokens: Tensor, centroids: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Group the tokens of each sample by k-means, with L1 distances and means.

    A fixed number of rounds, so that nothing is read back from the device. A cluster without tokens
    keeps its centroid.

    Args:
        tokens: `[B, N, D]`.
        centroids: Where the clusters begin, `[B, K, D]`.
        rounds: How often tokens are assigned.

    Returns:
        The cluster of each token `[B, N]`, and the centroids.

    Example:
        >>> tokens = torch.tensor([[[0.0], [1.0], [9.0]]])
        >>> find_clusters(tokens, torch.tensor([[[0.0], [9.0]]]), 2)[0]
        tensor([[0, 0, 1]])
    """
    wide = tokens.float()
    count = centroids.shape[1]
    for _ in range(rounds):
        labels = torch.cdist(wide, centroids, p=1.0).argmin(dim=-1)
        member = functional.one_hot(labels, count).to(wide.dtype)
        sizes = member.sum(dim=1).unsqueeze(-1)
        means = member.mT @ wide / sizes.clamp_min(1.0)
        centroids = torch.where(sizes > 0, means, centroids)
    return labels, centroids


def start_clusters(tokens: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Tokens at random places, the same of every sample, as centroids to begin with, `[B, K, D]`.

    Args:
        tokens: `[B, N, D]`.
        count: K.
        draw: On the CPU.
    """
    places = torch.randint(tokens.shape[1], (count,), generator=draw)
    return tokens[:, places.to(tokens.device)].float()


def pick_tokens(labels: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """One token of each cluster at random, `[B, K]`; the first token for a cluster without any.

    Which one does not depend on the other samples of the batch.

    Args:
        labels: The cluster of each token, `[B, N]`.
        count: K.
        draw: On the CPU.
    """
    chances = torch.rand(labels.shape[1], generator=draw).to(labels.device)
    clusters = torch.arange(count, device=labels.device).reshape(1, -1, 1)
    return torch.where(labels.unsqueeze(1) == clusters, chances, -1.0).argmax(dim=-1)


def spread_tokens(made: Tensor, picked: Tensor, labels: Tensor, ratio: float) -> Tensor:
    """Mix each token with the one that was picked of its cluster, `[B, N, D]`.

    Args:
        made: The tokens, with the picked ones as they are now.
        picked: Places of these, `[B, K]`.
        labels: The cluster of each token, `[B, N]`.
        ratio: Part of the picked one.

    Example:
        >>> made = torch.tensor([[[4.0], [0.0], [1.0]]])
        >>> spread_tokens(made, torch.tensor([[0, 2]]), torch.tensor([[0, 0, 1]]), 0.5)[0, :, 0]
        tensor([4., 2., 1.])
    """
    source = picked.gather(1, labels).unsqueeze(-1).expand_as(made)
    return made.lerp(made.gather(1, source), ratio)
