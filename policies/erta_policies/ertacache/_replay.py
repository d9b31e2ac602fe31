"""`ReplayProfiler`: the threshold walk on the cached trajectory itself."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Call, Profile, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_policies.ertacache._profiler import relative_error, to_channels
from erta_policies.ertacache._statistics import REPLAY
from erta_policies.shared import RunProfiler, read_reference, require_computed


@dataclass(slots=True)
class ReplayState:
    """State of one request: cached residuals, the last step decided and how, and the errors."""

    residuals: dict[str, Tensor] = field(default_factory=dict)
    decided: int = -1
    reuses: bool = False
    errors: dict[int, float] = field(default_factory=dict)
    computed: set[int] = field(default_factory=set)


class ReplayProfiler(RunProfiler):
    """ERTACache's walk in its replay reading: the residual is evaluated on the cached trajectory.

    The network runs at every step. Where the error of the cached residual is below the threshold,
    the trajectory goes on with the reused output. The first branch of a step decides for all, by
    the error averaged over the batch. Calibrate in one batch to average over all prompts: several
    batches walk apart, and the majority of samples decides. The emitted profile carries the
    schedule; give it to `SkipPolicy(profile=...)`.

    Source: ERTACache, arXiv 2508.21091, offline policy; reading the walk this way is ours.

    Attributes:
        threshold: lambda.
        warmup: Steps at the start that are always computed.

    Raises:
        PolicyError: The threshold is negative, `warmup` below 1, or a step was reused.
        InputError: The trajectory does not start at step 0.

    Example:
        >>> profiler = ReplayProfiler(threshold=0.05)
        >>> Sampler(batch_size=32).calibrate(model, prompts, profiler=profiler)  # doctest: +SKIP
    """

    kind = REPLAY

    traits = Traits(corrects_computed=True)

    threshold: float
    warmup: int = 1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise PolicyError(f"ReplayProfiler(threshold={self.threshold}): it must be >= 0")
        if self.warmup < 1:
            raise PolicyError(f"ReplayProfiler(warmup={self.warmup}): step 0 is always computed")

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        replay = step.session.state_of(self, ReplayState)
        reference = read_reference(step, call)
        residual = call.compute() - reference
        cached = replay.residuals.get(call.branch)
        if replay.decided != step.index:
            self._decide(step, replay, residual, cached)
        if cached is not None and replay.reuses:
            return reference + cached
        replay.residuals[call.branch] = residual
        return output

    def _decide(
        self, step: Step, replay: ReplayState, residual: Tensor, cached: Tensor | None
    ) -> None:
        # a branch without a residual makes the whole step compute, as the session will
        cold = cached is None or any(branch not in replay.residuals for branch in step.branches)
        forced = cold or step.index < self.warmup or step.index == step.num_steps - 1
        error = 0.0
        if cached is not None:
            error = float(relative_error(to_channels(cached), to_channels(residual)).mean())
        replay.decided = step.index
        replay.errors[step.index] = error
        replay.reuses = not forced and error < self.threshold
        if not replay.reuses:
            replay.computed.add(step.index)

    def summarise(self, session: SessionInfo) -> Profile | None:
        replay = session.state_of(self, ReplayState)
        if session.num_steps - 1 not in replay.computed:
            return None
        batch = session.shape[0]
        steps = range(session.num_steps)
        errors = [replay.errors.get(i, 0.0) * batch for i in steps]
        computed = [batch * (i in replay.computed) for i in steps]
        statistics = {
            "error": torch.tensor(errors).double(),
            "computed": torch.tensor(computed).double(),
        }
        return self.emit(session, statistics, provenance={"threshold": str(self.threshold)})
