"""The cached runs of a calibration batch, and how features and weights make a velocity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from erta_policies.fitted import _features as features

RUNS = ("full", "fitted", "plain", "taylor")
"""What each copy of a sample runs."""
RULE_DEPTH = 2
"""How many velocities the rules without a fit combine at the most."""


@dataclass(slots=True)
class CachedRun:
    """One cached run: its computed velocities, newest first, and its latents at the newest."""

    velocities: list[Tensor] = field(default_factory=list)
    start: Tensor | None = None

    def add(self, velocity: Tensor, x: Tensor, depth: int) -> None:
        """Keep a computed velocity."""
        self.velocities = [velocity, *self.velocities][:depth]
        self.start = x

    def follow_rule(
        self,
        name: str,
        x: Tensor,
        nodes: Sequence[float],
        ends: tuple[float, float],
        channel_dim: int,
    ) -> Tensor:
        """The velocity of a reused step under a rule that needs no fit.

        Args:
            name: `"plain"` for residual reuse, `"velocity"` for reuse of the newest velocity, else
                the line through the two newest.
            x: Latents of this run, `[n, C, ...]`.
            nodes: Nodes of the computed steps, newest first.
            ends: Nodes of the interval that the forecast is the mean over.
            channel_dim: Dimension of the channels.
        """
        assert self.start is not None
        found = features.build_features(self.velocities, x, self.start, RULE_DEPTH)
        row = {"plain": features.plain_weights, "velocity": features.velocity_weights}.get(
            name, partial(features.line_weights, nodes, *ends)
        )(RULE_DEPTH)
        return combine_features(found, torch.tensor([row]), channel_dim)


def combine_features(values: Sequence[Tensor], weights: Tensor, channel_dim: int) -> Tensor:
    """The weighted sum of features.

    Args:
        values: n + 2 features, each `[B, C, ...]`.
        weights: `[C or 1, n + 2]`; columns of zeros are left out.
        channel_dim: Dimension of the channels.
    """
    shape = [1] * values[0].ndim
    shape[channel_dim] = len(weights)
    total = torch.zeros_like(values[0])
    for value, column in zip(values, weights.T, strict=True):
        if bool((column != 0).any()):
            total = total + value * column.to(value).reshape(shape)
    return total
