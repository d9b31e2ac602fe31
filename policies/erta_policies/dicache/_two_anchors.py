"""`TwoAnchors`: a residual on the line through the last two, placed by the probe."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Needs, Policy, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.plugins import choose_unit
from erta_policies.shared import (
    check_probe_depth,
    mean_magnitude,
    probe_capability,
    read_probe,
)

TINY = 1e-8


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
            decides=choose_unit(self.per_sample),
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
