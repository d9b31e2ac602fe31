"""`ProbeRule`: reuses while a shallow probe changes little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from erta_framework import Call, Compute, Decision, Policy, Step, Traits, hookimpl
from erta_policies.shared import (
    Accumulator,
    check_probe_rule,
    make_probe_traits,
    read_probe,
    relative_l1,
    reuse_below,
)


@dataclass(slots=True)
class ProbeState:
    """Trunk input and probe of the last step, and the summed change of each sample."""

    input: Tensor | None = None
    probe: Tensor | None = None
    index: int = -1
    changes: Accumulator = field(default_factory=Accumulator)


class ProbeRule(Policy):
    """Reuses while the summed change of a shallow probe stays below `threshold`.

    The probe is the output of the first `depth` blocks, which run at every step. Its relative L1
    changes from step to step are summed since the last computed step. If the step computes after
    all, the network goes on from the probe: the first blocks do not run twice.

    Source: DiCache, arXiv 2508.17356, and its code. Each branch decides for itself, as in the code
    for Wan 2.1. Deciding for each sample is ours; at the trunk seam a sample that must be computed
    computes the batch.

    Attributes:
        threshold: delta.
        depth: m, blocks of the probe.
        error: `probe` takes the change of the probe, `difference` the absolute difference of the
            probe's change and the input's, the alternative in the code.
        branches: `each` decides for every branch, `first` lets the first branch decide, ours.
        per_sample: Decide for each sample; else one mean over the batch, as published.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> ProbeRule(threshold=0.4).traits.requires
        frozenset({'signal:probe:1'})
    """

    threshold: float = 0.1
    depth: int = 1
    error: Literal["probe", "difference"] = "probe"
    branches: Literal["each", "first"] = "each"
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_probe_rule(self.depth, self.threshold, "ProbeRule")

    @property
    def traits(self) -> Traits:
        return make_probe_traits(self.depth, self.per_sample, self.branches == "each")

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        scope = "branch" if self.branches == "each" else "step"
        state = call.state_of(self, ProbeState)
        probe, x = read_probe(call, self.depth), call.x
        known = state.index == step.index - 1 and state.probe is not None
        earlier, before = state.probe, state.input
        state.probe, state.input, state.index = probe.clone(), x.clone(), step.index
        if not known or earlier is None or before is None or earlier.shape != probe.shape:
            return Compute("no probe of the step before", scope)
        change = relative_l1(probe, earlier, self.per_sample)
        if self.error == "difference":
            change = (change - relative_l1(x, before, self.per_sample)).abs()
        computed = call.history[0].steps(x.shape[0])
        sums = state.changes.add(step.index, computed, change.tolist())
        return reuse_below(sums, self.threshold, f"probe change {max(sums):.4f}", scope)
