"""`DiCache` as a recipe: a skip rule on a shallow probe, and a two-anchor reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_policies.adapters import LastStep, WarmUp
from erta_policies.dicache._probe_rule import ProbeRule
from erta_policies.dicache._two_anchors import TwoAnchors

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
