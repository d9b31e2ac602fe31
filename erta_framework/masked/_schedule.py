"""`MaskedSchedule`: how many tokens each step decodes, in which blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedSchedule:
    """Blocks from left to right, each decoded in the same number of steps.

    Within a block, the tokens are spread evenly over its steps; what does not divide goes to the
    first ones (LLaDA, arXiv 2502.09992, `get_num_transfer_tokens`).

    Attributes:
        steps: Steps for the whole answer; None decodes one token a step.
        block: Tokens of a block; None takes the whole answer as one.

    Raises:
        InputError: A number is less than 1.

    Example:
        >>> MaskedSchedule(steps=8, block=4).plan(torch.ones(1, 16, dtype=torch.bool)).left[0, 0]
        tensor([2, 0])
    """

    steps: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} of the masked schedule is {value}, it must be at least 1")

    def plan(self, masked: Tensor) -> MaskedPlan:
        """The plan for answers whose masked positions are given, `[B, A]` booleans.

        Raises:
            InputError: The steps do not divide among the blocks.
        """
        length = masked.shape[1]
        block = length if self.block is None else self.block
        blocks = -(-length // block)
        steps = block if self.steps is None else self.steps // blocks
        if steps < 1 or (self.steps is not None and self.steps % blocks):
            raise InputError(
                f"{self.steps} steps do not divide among the {blocks} blocks of {block} in an "
                f"answer of {length} tokens; give a multiple of {blocks}"
            )
        padded = torch.nn.functional.pad(masked, (0, blocks * block - length))
        counts = padded.reshape(len(masked), blocks, block).sum(-1)
        done = torch.arange(1, steps + 1, device=masked.device)
        base, more = counts[..., None] // steps, counts[..., None] % steps
        left = counts[..., None] - base * done - torch.minimum(more, done)
        return MaskedPlan(block, length, counts, left)


@dataclass(frozen=True, slots=True, eq=False)
class MaskedPlan:
    """What a schedule makes of one batch of answers.

    Attributes:
        block: Tokens of a block.
        length: Tokens of an answer, A.
        counts: Masked tokens of each block at the start, `[B, blocks]`.
        left: How many of them are masked after each step of their block, `[B, blocks, steps]`.
    """

    block: int
    length: int
    counts: Tensor
    left: Tensor

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.counts.shape[1]

    @property
    def steps(self) -> int:
        """Steps of a block."""
        return self.left.shape[2]

    def count_steps(self) -> int:
        """Steps until the last answer is decoded."""
        return int(self.counts.clamp(max=self.steps).sum(1).max())
