"""`BlockCache`: blocks that add little are left out, and what they added last is added again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Policy, Seam, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.metrics import mean_magnitude
from erta_framework.modules import Action, Keep, Parts, Place, ReuseKept, Select

KEEP_RESIDUAL, REUSE_RESIDUAL = Keep("residual"), ReuseKept(of="residual")


@dataclass(slots=True)
class Ranked:
    """What is known of one sample since its last profile step.

    Attributes:
        profiled: That step; -1 before the first.
        reused: The blocks that are left out; None until they are ranked.
        executed: Steps in which the network ran on the sample since then.
    """

    profiled: int = -1
    reused: frozenset[Place] | None = None
    executed: set[int] = field(default_factory=set)


class BlockCache(Policy):
    """Leaves out the blocks that add least, for some executed steps at a time.

    In a profile step all blocks run, and what each adds to its input is kept, D = F(x) - x. Blocks
    are ranked by the mean of |D|, summed over the streams of a block that has several. In the next
    `length` steps in which the network runs, the lowest `skip_ratio` of the blocks are left out:
    their output is their input plus D. D is not renewed until the next profile step. Steps that a
    rule beside it reuses do not count.

    Source: the block-level part of PreciseCache, arXiv 2603.00976. No code was released, and all
    of it is known from secondary sources: a profile step, D, pivotal blocks, L = 3 and a cache rate
    of 40 %. Whether that rate is the part that is left out or the part that runs, they do not
    say clearly. Ours are the mean of |D| as the magnitude, the sum over streams, the mean over
    all samples of a call, and that the first branch of a step ranks for all.

    Attributes:
        skip_ratio: Part of the blocks that is left out, rounded down.
        length: Executed steps between two profile steps, L.
        blocks: Which blocks may be left out; by default all of the trunk. Fewer keep less.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: At attach, where there are no such blocks; in the first step, where
            outputs of a block do not continue its inputs.

    Example:
        >>> BlockCache(skip_ratio=0.25).count_skipped(40)
        10
    """

    skip_ratio: float = 0.4
    length: int = 3
    blocks: Select = field(default_factory=lambda: Select(kind=("block",)))

    traits = Traits(seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        if not 0.0 <= self.skip_ratio <= 1.0 or self.length < 0:
            raise PolicyError(
                f"BlockCache has skip_ratio={self.skip_ratio} and length={self.length}; give a "
                "part of the blocks in [0, 1], and 0 or more steps"
            )
        if self.blocks.kind != ("block",) or self.blocks.span:
            raise PolicyError(f"BlockCache ranks single blocks, and not {self.blocks}")

    @property
    def selects(self) -> Sequence[Select]:
        """The blocks."""
        return (self.blocks,)

    def count_skipped(self, blocks: int) -> int:
        """How many of so many blocks are left out.

        Example:
            >>> BlockCache().count_skipped(30)
            12
        """
        return int(self.skip_ratio * blocks + 1e-9)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        if not self.count_skipped(len(call.sites)):
            return {}
        shared = step.session.state_of(self, dict[str, dict[int, Ranked]])
        known = shared.setdefault(call.model, {})
        rows = range(call.batch) if call.rows is None else call.rows
        samples = [known.setdefault(row, Ranked()) for row in rows]
        if self._must_profile(samples, step, call):
            known.update({row: Ranked(step.index) for row in rows})
            return dict.fromkeys(call.sites, KEEP_RESIDUAL)
        ranked = None
        for one in samples:
            one.executed.add(step.index)
            if one.reused is None:
                one.reused = ranked = self._rank(call) if ranked is None else ranked
        self._forget_pivotal(known, call)
        left_out = frozenset[Place].intersection(*(one.reused or frozenset() for one in samples))
        return dict.fromkeys(left_out, REUSE_RESIDUAL)

    def _must_profile(self, samples: Sequence[Ranked], step: Step, call: Parts) -> bool:
        """Whether the L steps of some sample are over, or what its blocks added is not known."""
        return any(
            one.profiled in (-1, step.index)
            or len(one.executed | {step.index}) > self.length
            or not all(call.kept(p) for p in (call.sites if one.reused is None else one.reused))
            for one in samples
        )

    def _forget_pivotal(self, known: Mapping[int, Ranked], call: Parts) -> None:
        """Drop what blocks added that run in every sample, once all samples are ranked."""
        needed = [one.reused for one in known.values()]
        if None not in needed:
            reused = frozenset[Place]().union(*(places or () for places in needed))
            for place in call.sites:
                if place not in reused:
                    call.forget(place)

    def _rank(self, call: Parts) -> frozenset[Place]:
        """The blocks that added least in the profile step; reads back one value for each block."""
        kept = [call.newest(place, "residual") for place in call.sites]
        added = torch.stack([measure_added(residuals) for residuals in kept])
        order: list[int] = added.argsort(stable=True).tolist()
        return frozenset(call.sites[k] for k in order[: self.count_skipped(len(order))])


def measure_added(residuals: Sequence[Tensor]) -> Tensor:
    """Mean magnitude of what a block added, summed over its streams, a scalar.

    Example:
        >>> measure_added([torch.ones(1, 2, 3), -2 * torch.ones(1, 4, 3)])
        tensor(3.)
    """
    return torch.stack([mean_magnitude(one, per_sample=False) for one in residuals]).sum()
