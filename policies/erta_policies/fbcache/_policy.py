"""`FBCache` as a recipe: a skip rule on the first block's residual, and its predictor."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from erta_framework import Call, Compute, Decision, Needs, Policy, Step, Traits, hookimpl
from erta_policies.shared import (
    check_probe_depth,
    check_probe_rule,
    make_probe_traits,
    probe_capability,
    read_probe,
    relative_l1,
    reuse_below,
)


@dataclass(slots=True)
class FirstBlockReference:
    """Residual of the first blocks at the newest computed step, `[B, tokens, D]`."""

    residual: Tensor | None = None


class FirstBlockRule(Policy):
    """Reuses while the first `depth` blocks have nearly the residual of the last computed step.

    Source: the first-block cache of ParaAttention, `first_block_cache/utils.py`; with `depth` as
    Fn of DBCache in cache-dit. Deciding for each sample is ours; at the trunk seam a sample that
    must be computed computes the batch.

    Attributes:
        threshold: Relative L1 change at which all blocks run again.
        depth: Blocks that always run.
        per_sample: Decide for each sample; else one mean over the batch, as published.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> FirstBlockRule(threshold=0.1).traits.requires
        frozenset({'signal:probe:1'})
    """

    threshold: float = 0.05
    depth: int = 1
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_probe_rule(self.depth, self.threshold, "FirstBlockRule")

    @property
    def traits(self) -> Traits:
        return make_probe_traits(self.depth, self.per_sample)

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        state = call.state_of(self, FirstBlockReference)
        residual = read_probe(call, self.depth) - call.x
        if state.residual is None or state.residual.shape != residual.shape:
            return Compute("no first-block residual yet", scope="branch")
        changes = relative_l1(residual, state.residual, self.per_sample).tolist()
        return reuse_below(changes, self.threshold, f"first-block change {max(changes):.4f}")

    @hookimpl(wrapper=True)
    def forward(self, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        if call.ran:  # the blocks have run, so that looking costs nothing
            call.state_of(self, FirstBlockReference).residual = (
                read_probe(call, self.depth) - call.x
            )
        return output


class ProbeReuse(Policy):
    """Predicts `probe + (residual - probe residual)`: the first blocks are fresh, the rest cached.

    Source: ParaAttention's first-block cache, where the cached residual is that of the blocks
    behind the first.

    Attributes:
        depth: Blocks that run.

    Raises:
        PolicyError: The depth is less than 1.

    Example:
        >>> ProbeReuse().depth
        1
    """

    depth: int = 1

    def __post_init__(self) -> None:
        check_probe_depth(self.depth, "ProbeReuse")

    @property
    def traits(self) -> Traits:
        return Traits(requires=probe_capability(self.depth), memory=Needs(evaluations=1))

    @hookimpl
    def forward(self, call: Call) -> Tensor | None:
        state = call.state_of(self, FirstBlockReference)
        if not call.reused:
            output = call.compute()
            state.residual = read_probe(call, self.depth) - call.x
            return output
        if state.residual is None:
            return None
        return read_probe(call, self.depth) + (call.history[0].residual - state.residual)


class FBCache(Policy):
    """First-block cache as a recipe: `FirstBlockRule` + `ProbeReuse`, at the trunk seam.

    Published thresholds of ParaAttention: 0.08 for FLUX.1-dev, 0.06 for HunyuanVideo; diffusers'
    own first-block cache starts at 0.05. The first step computes, no other one is forced; list
    `WarmUp` and `LastStep` before it for that.

    Source: ParaAttention (chengzeyi/ParaAttention), `first_block_cache`; no paper.

    Attributes:
        threshold: Relative L1 change of the first blocks' residual.
        depth: Blocks that always run.
        predictor: The published predictor, another policy, or False for core's own.
        per_sample: Decide for each sample, else over the batch as published.

    Example:
        >>> [part.name for part in FBCache(threshold=0.08).parts()]
        ['first_block_rule', 'probe_reuse']
    """

    threshold: float = 0.05
    depth: int = 1
    predictor: bool | Policy = True
    per_sample: bool = True

    def parts(self) -> Sequence[Policy]:
        rule = FirstBlockRule(
            threshold=self.threshold, depth=self.depth, per_sample=self.per_sample
        )
        if self.predictor is False:
            return (rule,)
        own = ProbeReuse(depth=self.depth) if self.predictor is True else self.predictor
        return (rule, own)
