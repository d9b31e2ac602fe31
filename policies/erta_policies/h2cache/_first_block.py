"""`FirstBlockGate`: FBCache and DBCache on the blocks of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import cached_property

from erta_framework.modules import Select
from erta_policies.shared import SpanGate, SpanGates


class FirstBlockGate(SpanGates):
    """Runs the first blocks, and leaves out those behind them while the first ones change little.

    FBCache of ParaAttention and DBCache of cache-dit inside the network. It decides as `fbcache`
    with `per_sample=False` does, which reuses the whole block stack; this one may be given any run
    of blocks, keeps `tail` blocks running at the end, and stands beside any step rule.

    Published thresholds of FBCache: 0.08 for FLUX.1-dev, 0.06 for HunyuanVideo. DBCache starts at
    `head=8`, `threshold=0.08`, `warmup=8` (F8B0). The mean is over all samples of a call, as
    published.

    Source: ParaAttention (chengzeyi/ParaAttention), `first_block_cache`; cache-dit
    (vipshop/cache-dit) for `head` and `tail`, its Fn and Bn. No paper.

    Attributes:
        blocks: Which blocks; by default all of the trunk.
        threshold: Relative L1 change of the residual of the first blocks at which all run.
        head: Blocks that always run and decide, Fn.
        tail: Blocks that always run at the end, Bn.
        pool: Side of the squares of tokens and channels that are averaged before the comparison.
        warmup: First steps at which every block runs.
        max_consecutive: Steps after which the span runs again; None for no limit.
        each_branch: Whether every guidance branch decides for itself; else the first one does.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: At attach, where there are not so many blocks.

    Example:
        >>> FirstBlockGate(threshold=0.08, head=8, warmup=8).gates[0].head
        8
    """

    blocks: Select = field(default_factory=lambda: Select(kind=("block",)))
    threshold: float = 0.05
    head: int = 1
    tail: int = 0
    pool: int = 1

    @cached_property
    def gates(self) -> Sequence[SpanGate]:
        """The one gate."""
        return (
            SpanGate(
                blocks=self.blocks,
                threshold=self.threshold,
                head=self.head,
                tail=self.tail,
                pool=self.pool,
            ),
        )
