"""One step of decoding: the tokens of the block that stay, change or are masked again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from erta_framework.masked._decoder import Decoder, take_first
from erta_framework.masked._model import Rows
from erta_framework.masked._positions import Positions


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The columns of the blocks that the samples work at.

    Attributes:
        columns: `[B, K]`; beyond the end of the sequence for samples that are done.
        inside: Which of them are columns of the sequence, `[B, K]`.
        length: Length of the sequence, L.
    """

    columns: Tensor
    inside: Tensor
    length: int

    @staticmethod
    def of(positions: Positions) -> Window:
        """The window of the open step."""
        plan, length = positions.plan, positions.ids.shape[1]
        first = positions.start + positions.block * plan.block
        columns = first[:, None] + torch.arange(plan.block, device=first.device)
        return Window(columns, columns < length, length)

    def take(self, x: Tensor) -> Tensor:
        """The entries `[B, K, ...]` of `x` `[B, L, ...]`; outside, those of the last column."""
        return Rows(self.columns.clamp(max=self.length - 1)).gather(x)

    def put(self, x: Tensor, values: Tensor) -> Tensor:
        """A copy of `x` `[B, L]` with `values` `[B, K]` in the window."""
        wide = functional.pad(x, (0, 2 * self.columns.shape[1]))
        return wide.scatter(1, self.columns, values)[:, : self.length]


def decode_tokens(
    decoder: Decoder,
    positions: Positions,
    logits: Tensor,
    fresh: Tensor | None,
    generators: list[torch.Generator],
) -> Tensor:
    """Decode, edit and mask again; whether a sample was edited, `[B]`."""
    ids = positions.ids
    window = Window.of(positions)
    take = window.take
    inner = take(logits).clone()
    inner[..., positions.mask_id : positions.mask_id + 1] = -torch.inf
    tokens, probability = decoder.draw(inner, generators)
    free = window.inside & ~take(positions.given)
    ready = free if fresh is None else free & take(fresh)
    now, masked = take(ids), take(positions.masked)
    count = (masked & free).sum(1) - positions.left_after()
    if decoder.threshold is not None:
        count = count.clamp(min=1)
    confidence = take(positions.confidence)
    dropped = torch.zeros_like(masked)
    if decoder.remask:
        few = torch.minimum(torch.full_like(count, decoder.remask), positions.left_after())
        dropped = take_first(free & ~masked, few, -confidence)
        count = count + dropped.sum(1)
    chosen = decoder.choose(ready & masked, count, probability, take(positions.priority))
    edited = torch.zeros_like(masked)
    if decoder.edit_threshold is not None:
        sure = (probability > decoder.edit_threshold) & (tokens != now)
        edited = ready & ~masked & sure
    new = torch.where(chosen | edited, tokens, now)
    new = new.masked_fill(dropped, positions.mask_id)
    drawn = torch.where(ready & (masked | edited), probability, confidence)
    positions.confidence = window.put(positions.confidence, drawn)
    positions.update(window.put(ids, new))
    return edited.any(1)


def advance_blocks(decoder: Decoder, positions: Positions, edited: Tensor, post: Tensor) -> Tensor:
    """Go to the next step or block; the steps made in each block without masks, `[B]`."""
    open_ = (positions.masked & positions.in_block & ~positions.given).any(1)
    busy = open_
    if decoder.edit_threshold is not None:
        # one step to see whether anything is edited, and one more after each edit
        again = (post == 0) | edited
        busy = open_ | (again & (post < decoder.post_steps))
        post = torch.where(open_ | ~busy, 0, post + 1)
    positions.advance(busy & ~positions.finished)
    return post


def list_masked_shares(positions: Positions, decoder: Decoder) -> tuple[float, ...]:
    """The share of the steps that is left, before each step and after the last."""
    count = positions.plan.count_steps()
    if decoder.edit_threshold is not None:
        count += positions.plan.blocks * decoder.post_steps
    return tuple(1.0 - index / count for index in range(count + 1))
