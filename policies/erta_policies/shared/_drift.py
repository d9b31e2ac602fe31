"""How far a tensor has moved from its kept version, and a blend of what is stale and fresh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from erta_framework.errors import InputError, PolicyError


def measure_norms(values: Tensor, channels: int = -1) -> Tensor:
    """L2 norm of every token, `[B, N]`; of `[B, C]` of the one token, `[B, 1]`.

    Summed in float32, or in float64 if `values` are float64. Nothing is read back to the host.

    Args:
        values: `[B, N, C]`, or any shape with samples first.
        channels: The dimension of the channels: the last of tokens, 1 of images `[B, C, H, W]`.

    Example:
        >>> measure_norms(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]))
        tensor([[5., 0.]])
    """
    norms: Tensor = torch.linalg.vector_norm(to_sums(values), dim=channels)
    return norms.reshape(values.shape[0], -1)


def measure_spread(values: Tensor, channels: int = -1) -> Tensor:
    """Standard deviation over the channels of every token, `[B, N]`, by C and not C - 1.

    Args:
        values: `[B, N, C]`, or any shape with samples first.
        channels: The dimension of the channels.

    Example:
        >>> measure_spread(torch.tensor([[[1.0, 3.0]]]))
        tensor([[1.]])
    """
    spread = to_sums(values).std(dim=channels, correction=0)
    return spread.reshape(values.shape[0], -1)


def measure_drift(
    now: Tensor, kept: Tensor, over: Literal["tokens", "whole"] = "tokens", channels: int = -1
) -> Tensor:
    """Relative L2 change of each sample from its kept version, `[B]`.

    Over tokens `mean ||now - kept|| / mean ||kept||` with the norm of each token; over the whole
    sample `||now - kept|| / ||kept||`. As `relative_l1`, it is 0 exactly where nothing changed, and
    infinite against a kept version of zeros. NaN stays NaN, which is below no threshold.

    Args:
        now: `[B, N, C]`, or any shape with samples first.
        kept: The kept version, of the same shape.
        over: Whether every token counts by its norm, or every number by its square.
        channels: The dimension of the channels; of no meaning for the whole.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> measure_drift(torch.full((2, 1, 4), 1.5), torch.ones(2, 1, 4))
        tensor([0.5000, 0.5000])
    """
    require_one_shape(now, kept)
    if over == "whole":
        now, kept, channels = now.flatten(1), kept.flatten(1), -1
    change = measure_norms(to_sums(now) - to_sums(kept), channels).mean(1)
    return relate(change, measure_norms(kept, channels).mean(1))


def measure_spread_drift(now: Tensor, kept: Tensor, channels: int = -1) -> Tensor:
    """Relative change of each sample's spread over the channels, `[B]`.

    `mean |std(now) - std(kept)| / mean std(kept)` over the tokens; 0 and infinity as in
    `measure_drift`.

    Args:
        now: `[B, N, C]`, or any shape with samples first.
        kept: The kept version, of the same shape.
        channels: The dimension of the channels.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> x = torch.tensor([[[1.0, -1.0]]])
        >>> measure_spread_drift(2 * x + 5, x)
        tensor([1.])
    """
    require_one_shape(now, kept)
    before = measure_spread(kept, channels)
    change = (measure_spread(now, channels) - before).abs().mean(1)
    return relate(change, before.mean(1))


def blend(stale: Tensor, fresh: Tensor, weights: Sequence[float]) -> Tensor:
    """`(1 - w) * stale + w * fresh`, with a weight for each sample.

    Where every weight is 0 or every one is 1, that tensor itself comes back. A sample with weight 0
    or 1 has the bits of that tensor, whatever stands in the other. Counts and masks are the fresh
    ones.

    Args:
        stale: `[B, ...]`.
        fresh: Of the same shape.
        weights: From 0 to 1, one for each sample, or one for all.

    Raises:
        InputError: The shapes differ, or there are other samples than weights.
        PolicyError: A weight is not within 0 and 1.

    Example:
        >>> blend(torch.zeros(2, 1), torch.ones(2, 1), [0.25, 1.0])
        tensor([[0.2500],
                [1.0000]])
    """
    require_one_shape(stale, fresh)
    if len(weights) not in (1, stale.shape[0]):
        raise InputError(
            f"{len(weights)} weights for {stale.shape[0]} samples; give one for each, or one"
        )
    if not all(0.0 <= weight <= 1.0 for weight in weights):
        raise PolicyError(f"a blend has the weights {list(weights)}; they lie within 0 and 1")
    if not fresh.is_floating_point() or all(weight == 1.0 for weight in weights):
        return fresh
    if all(weight == 0.0 for weight in weights):
        return stale
    table = torch.tensor(weights, dtype=fresh.dtype, device=fresh.device)
    table = table.reshape(-1, *[1] * (fresh.ndim - 1))
    mixed = torch.lerp(stale, fresh, table)
    # 0 times infinity or NaN would not be 0
    return torch.where(table == 0, stale, torch.where(table == 1, fresh, mixed))


def relate(change: Tensor, size: Tensor) -> Tensor:
    """A change by what changed, `[B]`: 0 where nothing did, infinite where that was zero."""
    return torch.where(change == 0, 0.0, change / size)


def to_sums(values: Tensor) -> Tensor:
    """The values in the type in which they are summed."""
    return values if values.dtype == torch.float64 else values.float()


def require_one_shape(a: Tensor, b: Tensor) -> None:
    """Refuse tensors of two shapes.

    Raises:
        InputError: Names both.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise InputError(
            f"a tensor {tuple(a.shape)} and its kept version {tuple(b.shape)} must have one shape "
            "[B, ...]"
        )
