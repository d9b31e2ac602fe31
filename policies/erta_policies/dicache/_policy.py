"""`DiCache` as a recipe: a skip rule on a shallow probe, and a two-anchor reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Call, Compute, Decision, Needs, Policy, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_policies.adapters import LastStep, WarmUp
from erta_policies.shared import (
    Accumulator,
    check_probe_depth,
    mean_magnitude,
    probe_capability,
    read_probe,
    relative_l1,
    reuse_below,
)

TINY = 1e-8


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
        check_probe_depth(self.depth, "ProbeRule")
        if not self.threshold >= 0.0:
            raise PolicyError(f"the threshold of ProbeRule is {self.threshold}, below 0")

    @property
    def traits(self) -> Traits:
        return Traits(
            requires=probe_capability(self.depth),
            memory=Needs(evaluations=1),
            decides="sample"
            if self.per_sample
            else "branch"
            if self.branches == "each"
            else "step",
        )

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


@dataclass(slots=True)
class ProbeAnchors:
    """Probe residuals of the two newest computed steps, newest first."""

    residuals: list[Tensor] = field(default_factory=list)


class TwoAnchors(Policy):
    """Predicts the residual on the line through the last two, as far along as the probe has moved.

    R1, R2 are the residuals and Q1, Q2 the probe residuals of the two newest computed steps, newest
    first; q is the probe residual of this step. The predicted residual is `R2 + g (R1 - R2)` with
    `g = mean|q - Q2| / mean|Q1 - Q2|`, clipped to `[1, limit]`. After a single computed step it is
    plain residual reuse.

    Source: DiCache, arXiv 2508.17356, and its code (limit 1.5 for FLUX and HunyuanVideo, 2 for
    Wan). One g for each sample is ours, the code has one for the batch; so is g = 1 where Q1 and Q2
    do not differ.

    Attributes:
        depth: m, blocks of the probe.
        limit: Largest g.
        per_sample: One g a sample, else one for the batch.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> TwoAnchors().traits.memory.evaluations
        2
    """

    depth: int = 1
    limit: float = 1.5
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_probe_depth(self.depth, "TwoAnchors")
        if not self.limit >= 1.0:
            raise PolicyError(f"the limit of TwoAnchors is {self.limit}, it must be at least 1")

    @property
    def traits(self) -> Traits:
        return Traits(
            requires=probe_capability(self.depth),
            memory=Needs(evaluations=2),
            decides="sample" if self.per_sample else "step",
        )

    @hookimpl
    def forward(self, call: Call) -> Tensor | None:
        anchors = call.state_of(self, ProbeAnchors).residuals
        if not call.reused:
            output = call.compute()
            anchors.insert(0, read_probe(call, self.depth) - call.x)
            del anchors[2:]
            return output
        newest = call.history[0].residual
        if len(call.history) < 2 or len(anchors) < 2:
            return call.x + newest
        older = call.history[1].residual
        place = self._place(read_probe(call, self.depth) - call.x, *anchors)
        return call.x + older + place.to(newest.dtype) * (newest - older)

    def _place(self, now: Tensor, newest: Tensor, older: Tensor) -> Tensor:
        """g, `[B, 1, ...]` or `[1, 1, ...]`; 1 where the anchors do not differ."""
        width = mean_magnitude(newest - older, self.per_sample)
        moved = mean_magnitude(now - older, self.per_sample)
        place = torch.where(width > TINY, moved / width.clamp_min(TINY), 1.0)
        return place.clamp(1.0, self.limit).reshape(-1, *[1] * (now.ndim - 1))


PUBLISHED = {
    "flux.1-dev": {"threshold": 0.4, "limit": 1.5},
    "hunyuan-video": {"threshold": 0.1, "limit": 1.5},
    "wan2.1": {"threshold": 0.08, "limit": 2.0},
    "wan2.1-paper": {"threshold": 0.2, "limit": 2.0},
}
"""delta and limit by model, as in the released code; 0.2 for Wan 2.1 1.3B by notes on the paper."""


class DiCache(Policy):
    """DiCache (arXiv 2508.17356) as a recipe, at the trunk seam.

    Stands for `WarmUp` + `LastStep` + `ProbeRule` + `TwoAnchors`. The code forces the first fifth
    of the steps, for FLUX one step more and the last one as well.

    Attributes:
        model: Takes `threshold` and `limit` from the released code: `flux.1-dev`,
            `hunyuan-video`, `wan2.1`, or `wan2.1-paper` with the delta that notes on the paper
            report.
        threshold: delta; overrules the model's.
        limit: Largest place beyond the newest anchor; overrules the model's.
        depth: m, blocks of the probe.
        error: As in `ProbeRule`.
        branches: As in `ProbeRule`.
        warmup: Part of the steps that is always computed.
        last: Whether the last step is computed; None follows the model's code.
        predictor: The two anchors, another policy, or False for plain residual reuse.
        per_sample: Decide for each sample, else over the batch as published.

    Raises:
        PolicyError: No threshold is given, or the model is not published.

    Example:
        >>> [part.name for part in DiCache(model="flux.1-dev").parts()]
        ['warm_up', 'last_step', 'probe_rule', 'two_anchors']
    """

    model: str | None = None
    threshold: float | None = None
    limit: float | None = None
    depth: int = 1
    error: Literal["probe", "difference"] = "probe"
    branches: Literal["each", "first"] = "each"
    warmup: float = 0.2
    last: bool | None = None
    predictor: bool | Policy = True
    per_sample: bool = True

    def __post_init__(self) -> None:
        if self.model is not None and self.model not in PUBLISHED:
            raise PolicyError(
                f"DiCache publishes nothing for {self.model!r}; known: {', '.join(PUBLISHED)}; "
                "give threshold= (0.1 to 0.5 is a usual range to scan)"
            )
        if self.model is None and self.threshold is None:
            raise PolicyError("DiCache needs model= or threshold=")

    def parts(self) -> Sequence[Policy]:
        known = PUBLISHED.get(self.model or "", {})
        threshold = known["threshold"] if self.threshold is None else self.threshold
        limit = known.get("limit", 1.5) if self.limit is None else self.limit
        flux = self.model == "flux.1-dev"
        last = flux if self.last is None else self.last
        rule = ProbeRule(
            threshold=threshold,
            depth=self.depth,
            error=self.error,
            branches=self.branches,
            per_sample=self.per_sample,
        )
        chosen: list[Policy] = [WarmUp(fraction=self.warmup, steps=1 if flux else 0)]
        chosen += [LastStep()] if last else []
        chosen.append(rule)
        if self.predictor is True:
            chosen.append(TwoAnchors(depth=self.depth, limit=limit, per_sample=self.per_sample))
        elif isinstance(self.predictor, Policy):
            chosen.append(self.predictor)
        return tuple(chosen)
