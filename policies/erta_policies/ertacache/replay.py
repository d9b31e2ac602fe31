"""`ReplayProfiler`: the threshold walk on the cached trajectory itself."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Policy, Profile, SessionInfo, Step, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.profile import fingerprint_of
from erta_policies.ertacache.profiler import norm
from erta_policies.ertacache.skip import REPLAY


@dataclass(slots=True)
class Replay:
    """State of one request: cached residuals, whether this step reuses, and the sums."""

    residuals: dict[str, Tensor] = field(default_factory=dict)
    reuses: bool = False
    errors: dict[int, float] = field(default_factory=dict)
    computed: set[int] = field(default_factory=set)


class ReplayProfiler(Policy):
    """ERTACache's walk in its replay reading: the residual is evaluated on the cached trajectory.

    The network runs at every step, but where the error of the cached residual is below the
    threshold the trajectory goes on with the reused output. The first branch decides for all, on
    the error averaged over the batch: calibrate in one batch to average over all prompts. The
    emitted profile carries the schedule; give it to `SkipPolicy(profile=...)`.

    Source: ERTACache, arXiv 2508.21091, offline policy; that the walk may be read this way is ours.

    Attributes:
        threshold: lambda.
        warmup: Steps at the start that are always computed.
    """

    corrects_computed = True

    threshold: float
    warmup: int = 1

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise PolicyError(f"ReplayProfiler(threshold={self.threshold}): it must be >= 0")

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        replay = step.session.state_of(self, Replay)
        residual = output - call.x
        cached = replay.residuals.get(call.branch)
        if call.branch == step.session.branches[0]:
            self._decide(step, replay, residual, cached)
        if cached is not None and replay.reuses:
            return call.x + cached
        replay.residuals[call.branch] = residual
        return output

    def _decide(self, step: Step, replay: Replay, residual: Tensor, cached: Tensor | None) -> None:
        forced = cached is None or step.index < self.warmup or step.index == step.num_steps - 1
        error = 0.0
        if cached is not None:
            flat, earlier = residual.flatten(2).float(), cached.flatten(2).float()
            error = float((norm(earlier - flat) / norm(flat)).mean())
        replay.errors[step.index] = error
        replay.reuses = not forced and error < self.threshold
        if not replay.reuses:
            replay.computed.add(step.index)

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        replay = session.state_of(self, Replay)
        if error is not None:
            return None
        batch = session.shape[0]
        steps = range(session.num_steps)
        return Profile(
            kind=REPLAY,
            fingerprint=fingerprint_of(session),
            statistics={
                "error": torch.tensor([replay.errors.get(i, 0.0) * batch for i in steps]).double(),
                "computed": torch.tensor([batch * (i in replay.computed) for i in steps]).double(),
            },
            samples=batch,
            provenance={"threshold": str(self.threshold)},
        )
