"""What padding on the left changes: the places of tokens, and the mask that hides it."""

from __future__ import annotations

import torch
from torch import Tensor


def find_places(seen: Tensor | None, ids: Tensor) -> Tensor:
    """The place of every token in its own sequence, `[B, L]`; padding on the left has none.

    A sample has the same places alone as in a batch in which it is padded.
    """
    if seen is None:
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return (seen.long().cumsum(1) - 1).clamp(min=0)


def hide_padding(seen: Tensor | None, batch: int, count: int, length: int, like: Tensor) -> Tensor:
    """An additive mask `[B, 1, M, L]` that hides padding alone.

    Args:
        seen: Which tokens are no padding, `[B, L]`; None for all.
        batch: Samples, B.
        count: Rows that run, M.
        length: Tokens, L.
        like: A tensor of the type and device of the model.
    """
    if seen is None:
        zero = torch.zeros(1, 1, 1, length, dtype=like.dtype, device=like.device)
        return zero.expand(batch, 1, count, length)
    hidden = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    hidden = hidden.masked_fill(~seen, torch.finfo(like.dtype).min)
    return hidden[:, None, None, :].expand(batch, 1, count, length)
