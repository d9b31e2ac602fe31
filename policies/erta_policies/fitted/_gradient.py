"""The gradient of where a cached run ends, to its fitted weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from erta_framework import Profile, SessionInfo, Step, hookimpl
from erta_framework.calibration import SampleWith, SampleWithGradients
from erta_policies.fitted._descent import Differentiate
from erta_policies.fitted._end_to_end import with_rows
from erta_policies.fitted._features import velocity_weights
from erta_policies.fitted._schedule import FittedSchedule
from erta_policies.fitted._velocity import FittedVelocity, Weight, combine_velocities


class DifferentiableVelocity(FittedVelocity):
    """`FittedVelocity` with the gradient of its weights; its answers are the same bit by bit.

    Source: ours.

    Attributes:
        leaves: Where the weights of each batch go, `[B, T, C, n + 2]`: the profile's, once for each
            sample, so that each has a gradient of its own.

    Example:
        >>> DifferentiableVelocity(profile="fitted.safetensors", leaves=[]).guard
        False
    """

    leaves: list[Tensor]

    @cached_property
    def _numbers(self) -> tuple[Sequence[float] | Tensor | None, ...]:
        # a computed step that nothing corrects has a gradient as well
        plain = velocity_weights(self._table.settings.velocities)
        return tuple(plain if row is None else row for row in super()._numbers)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        super().on_session_start(session)
        rows = self._table.weigh_steps().expand(session.shape[0], -1, -1, -1)
        self.leaves.append(rows.clone().requires_grad_())

    def _combine(
        self,
        step: Step,
        x: Tensor,
        start: Tensor,
        outputs: Sequence[Tensor],
        weights: Sequence[Weight],
    ) -> Tensor:
        dim, row = step.session.channel_dim, self.leaves[-1][:, step.index]
        row = row.repeat(len(x) // len(row), 1, 1)  # guidance may repeat the samples
        found: Tensor = WeightedSum.apply(row, dim, weights, x, start, *outputs)  # type: ignore[no-untyped-call]
        return found


def make_differentiate(profile: Profile, sample: SampleWith) -> Differentiate | None:
    """How to sample with the gradient of other weights; None where the driver does not offer it.

    Args:
        profile: Of a `FittedProfiler`.
        sample: The samples under policies.
    """
    if not isinstance(sample, SampleWithGradients):
        return None

    def differentiate(rows: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        moved = with_rows(profile, rows)
        leaves: list[Tensor] = []
        velocity = DifferentiableVelocity(profile=moved, leaves=leaves)
        return sample.differentiate((FittedSchedule(profile=moved), velocity)), leaves

    return differentiate


class WeightedSum(torch.autograd.Function):
    """`combine_velocities`, with the gradient of the weights and of what they combine."""

    @staticmethod
    def forward(
        ctx: Any,
        row: Tensor,
        dim: int,
        weights: Sequence[Weight],
        x: Tensor,
        start: Tensor,
        *outputs: Tensor,
    ) -> Tensor:
        """The sum.

        Args:
            ctx: Of autograd.
            row: The weights of each sample, `[B, C, n + 2]`, which get the gradient.
            dim: Dimension of the channels.
            weights: The same, as they are used.
            x: Latents.
            start: Latents of the newest computed step.
            outputs: Computed velocities, newest first.
        """
        ctx.save_for_backward(row, x, start, *outputs)
        ctx.dim, ctx.weights = dim, weights
        return combine_velocities(x, start, outputs, weights)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of each input, from that of the sum."""
        row, x, start, *outputs = ctx.saved_tensors
        *velocities, latent, displacement = ctx.weights
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        found = torch.zeros_like(row)
        others = [place for place in range(1, x.ndim) if place != ctx.dim or row.shape[1] == 1]
        used = outputs[: len(velocities)]
        columns = [*enumerate(used), (len(velocities), x), (len(velocities) + 1, x - start)]
        for column, value in columns:
            part = (slope.to(wide) * value.to(wide)).sum(others)
            found[:, :, column] = part.reshape(len(row), -1).to(row)
        parts = [slope * weight for weight in velocities[: len(used)]]
        unused = [None] * (len(outputs) - len(used))
        along = slope * (latent + displacement), slope * -displacement
        return (found, None, None, *along, *parts, *unused)
