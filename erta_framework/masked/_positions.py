"""What is known of every position while a request is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework.masked._decoder import Decoder, take_first
from erta_framework.masked._schedule import MaskedPlan

LONG = 1 << 30
"""Steps since a token of the prompt became known, or since a row was computed that never was."""
NEXT = "next"


def list_tracked(decoder: Decoder) -> frozenset[str]:
    """Names of the signals that `Positions` offers with a decoder."""
    names = {"masked", "given", "known_for", "in_block", "block_step", "confidence"}
    return frozenset(names | {NEXT} if decoder.is_order_known else names)


@dataclass(slots=True, eq=False)
class Positions:
    """The tokens of a batch, and when each became what it is.

    Attributes:
        ids: Tokens, `[B, L]`.
        given: Positions that are never decoded: the prompt, padding, tokens that were there from
            the start, `[B, L]`.
        mask_id: The mask.
        plan: What each step decodes.
        start: Where the answer begins.
        decoder: How tokens are chosen.
        changed: Step at whose end a token became what it is, `[B, L]`.
        confidence: Probability of the token that was last drawn for a position, `[B, L]`.
        priority: The order of decoding where it is known; the highest comes first, `[B, L]`.
        block: Block that each sample works at, `[B]`; the number of blocks once it is done.
        block_step: Steps that were made in it, `[B]`.
        index: The step that is open.
    """

    ids: Tensor
    given: Tensor
    mask_id: int
    plan: MaskedPlan
    start: int
    decoder: Decoder
    changed: Tensor
    confidence: Tensor
    priority: Tensor
    block: Tensor
    block_step: Tensor
    index: int = 0

    @staticmethod
    def of(
        ids: Tensor,
        mask_id: int,
        plan: MaskedPlan,
        start: int,
        decoder: Decoder,
        priority: Tensor,
    ) -> Positions:
        """The state before the first step."""
        zeros = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        found = Positions(
            ids=ids,
            given=ids != mask_id,
            mask_id=mask_id,
            plan=plan,
            start=start,
            decoder=decoder,
            changed=torch.full_like(ids, -LONG),
            confidence=torch.zeros(ids.shape, device=ids.device),
            priority=priority,
            block=zeros,
            block_step=zeros.clone(),
        )
        found.skip_blocks()
        return found

    @property
    def masked(self) -> Tensor:
        """Masked positions, `[B, L]`."""
        return self.ids == self.mask_id

    @property
    def in_block(self) -> Tensor:
        """Positions of the block that each sample works at, `[B, L]`."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device) - self.start
        block = torch.where(place < 0, -1, place // self.plan.block)
        return block == self.block[:, None]

    @property
    def known_for(self) -> Tensor:
        """Steps since a token was decoded, `[B, L]`: 1 in the step after; 0 where masked."""
        since = (self.index - self.changed).clamp(max=LONG)
        return since.masked_fill(self.masked, 0)

    def left_after(self) -> Tensor:
        """Masked tokens that the block should have after the open step, `[B]`."""
        block = self.block.clamp(max=self.plan.blocks - 1)
        step = self.block_step.clamp(max=self.plan.steps - 1)
        return self.plan.left[torch.arange(len(block), device=block.device), block, step]

    @property
    def offers(self) -> frozenset[str]:
        """Names of the signals."""
        return list_tracked(self.decoder)

    def signal(self, name: str) -> Tensor:
        """One of the signals, by name."""
        found: Tensor = self.find_next() if name == NEXT else getattr(self, name)
        return found

    def find_next(self) -> Tensor:
        """The positions that the open step will decode, in an order that is known, `[B, L]`."""
        candidates = self.masked & self.in_block & ~self.given
        count = candidates.sum(1) - self.left_after()
        return take_first(candidates, count, self.priority)

    def update(self, ids: Tensor) -> None:
        """Take the tokens after a step; those that changed are as old as this step."""
        self.changed = torch.where(ids != self.ids, self.index, self.changed)
        self.ids = ids

    def advance(self, busy: Tensor) -> None:
        """Go to the next step; samples that are not `busy`, `[B]`, go to their next block."""
        self.block = self.block + (~busy & (self.block < self.plan.blocks)).long()
        self.block_step = torch.where(busy, self.block_step + 1, 0)
        self.skip_blocks()
        self.index += 1

    def skip_blocks(self) -> None:
        """Leave out blocks in which nothing was masked from the start."""
        for _ in range(self.plan.blocks):
            here = self.block.clamp(max=self.plan.blocks - 1)
            empty = self.plan.counts.gather(1, here[:, None])[:, 0] == 0
            self.block = self.block + (empty & (self.block < self.plan.blocks)).long()

    @property
    def finished(self) -> Tensor:
        """Samples that are done, `[B]`."""
        return self.block >= self.plan.blocks


@dataclass(slots=True, eq=False)
class Held:
    """Which keys and values of a branch are held, and since when.

    Attributes:
        tokens: The token for which a position's keys and values were computed, `[B, L]`; -1 where
            there are none.
        computed: Step at which they were computed, `[B, L]`.
    """

    tokens: Tensor
    computed: Tensor = field(repr=False)

    @staticmethod
    def nothing(ids: Tensor) -> Held:
        """Before the first call."""
        return Held(torch.full_like(ids, -1), torch.full_like(ids, -LONG))

    def find_usable(self, ids: Tensor, mask_id: int) -> Tensor:
        """Where a rule may reuse, `[B, L]`.

        Keys and values of a token that is another one by now, or masked again, are gone. Those of a
        mask may be reused for the token that took its place: when, is the rule's to say.
        """
        return (self.tokens >= 0) & ((self.tokens == ids) | (self.tokens == mask_id))

    def record(self, ids: Tensor, where: Tensor | None, index: int) -> None:
        """Note what was computed, `[B, L]`; None is everything."""
        if where is None:
            self.tokens, self.computed = ids, torch.full_like(ids, index)
            return
        self.tokens = torch.where(where, ids, self.tokens)
        self.computed = torch.where(where, index, self.computed)

    def age(self, index: int) -> Tensor:
        """Steps since the keys and values were computed, `[B, L]`."""
        return (index - self.computed).clamp(max=LONG)
