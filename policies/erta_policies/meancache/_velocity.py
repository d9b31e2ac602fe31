"""MeanCache's predictors: the sliding window of its released code, and the edges of its paper."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from erta_framework import Call, Needs, Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_policies.meancache._schedule import MeanCacheSchedule
from erta_policies.meancache._trajectory_memory import TrajectoryMemory, measure_slope

VELOCITY = frozenset({"velocity", "first_order"})
LATENTS = frozenset({Seam.LATENT})


class AverageVelocity(Policy):
    """Corrects the newest velocity by the slope that the last `span` steps of the latents show.

    The rule of MeanCache's released code (variant A): on a reused step i, with r = i - span,
    u = (x_i - x_r) / (sigma_i - sigma_r) is the mean velocity over the window, and

        v_i = v_{i-1} + (sigma_{i+1} - sigma_i) * (u - v_r) / (sigma_i - sigma_r).

    The window slides with every step and holds predicted velocities too; computed steps are not
    changed. A span of 1 is plain reuse of the newest velocity: under Euler steps its u is v_r.

    The release applies the rule to the guided velocity. Here each guidance branch applies it on
    its own, with the latents that all share. Write v_i = v_{i-1} + a (u - v_r) with the number
    a = (sigma_{i+1} - sigma_i) / (sigma_i - sigma_r). Branches that are combined with weights w_b
    which sum to 1 and stay the same over the window then give the guided rule exactly: the w_b
    combine each v, and leave u as it is. Classifier-free guidance is such a combination. Guidance
    that rescales the combined velocity, as Qwen-Image's does, is not: use variant C there.

    Source: UnicomAI/MeanCache at 2e12280a, the code of MeanCache, arXiv 2601.19961. That branches
    may apply it separately is ours.

    Attributes:
        span: K, steps of the window, where no schedule says otherwise.
        schedule: A schedule whose edges say K; it decides nothing here, list it as well.

    Raises:
        PolicyError: The span is less than 1.

    Example:
        >>> AverageVelocity(span=3).spans(4)
        (3, 3, 3, 3)
    """

    traits = Traits(
        requires=VELOCITY,
        seams=LATENTS,
        static=True,
        reads_latents=True,
        memory=Needs(evaluations=1),
    )
    span: int = 2
    schedule: MeanCacheSchedule | None = None

    def __post_init__(self) -> None:
        if self.span < 1:
            raise PolicyError(f"AverageVelocity has span {self.span}, it must be at least 1")

    def spans(self, num_steps: int) -> tuple[int, ...]:
        """K of every step."""
        if self.schedule is None:
            return (self.span,) * num_steps
        return tuple(max(1, span) for span in self.schedule.path.by_step(num_steps))

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        session.state_of(self, lambda: self.spans(session.num_steps))

    @hookimpl
    def forward(self, step: Step, call: Call) -> Tensor:
        spans: tuple[int, ...] = step.session.state_of(self, tuple)
        trail = call.state_of(self, TrajectoryMemory)
        velocity = self._predicted(step, call, trail, spans) if call.reused else call.compute()
        trail.add(step, call, velocity, velocity, keep=max(spans) + 1)
        return velocity

    def _predicted(
        self, step: Step, call: Call, trail: TrajectoryMemory, spans: tuple[int, ...]
    ) -> Tensor:
        newest = trail.back(1, call, step)
        assert newest is not None  # a reused branch was computed before
        earlier = trail.back(spans[step.index], call, step)
        assert earlier is not None
        if earlier.index == newest.index:
            return newest.v.clone()
        wide = torch.promote_types(call.x.dtype, torch.float32)
        change = measure_slope(call.x.to(wide), step.interval.start, earlier)
        if change is None:
            return newest.v.clone()
        length = step.interval.end - step.interval.start
        return (newest.v.to(wide) + length * change).to(call.x.dtype)


class EdgeVelocity(Policy):
    """One constant velocity for each edge of a MeanCache path, on its computed step as well.

    The semantics of MeanCache's paper (variant B): at a computed step t, whose edge ends at the
    next computed step s, with r = t - K and u = (x_t - x_r) / (sigma_t - sigma_r),

        v(t..s) = v_t + (sigma_s - sigma_t) * (u - v_r) / (sigma_t - sigma_r).

    If the latents went from r to t with one constant velocity that had no correction, u is v_r and
    the correction is 0. So on sparse paths without a dense beginning this is plain reuse; a test
    shows it. Branches apply the rule separately, as in `AverageVelocity`.

    Source: MeanCache, arXiv 2601.19961, from secondary sources; the released code does not do it.
    The remark on sparse paths is ours.

    Attributes:
        schedule: The path; it decides nothing here, list it as well.

    Raises:
        PolicyError: There is no schedule.

    Example:
        >>> EdgeVelocity(schedule=MeanCacheSchedule(fresh=(0, 1, 4), spans=(0, 2))).name
        'edge_velocity'
    """

    traits = Traits(
        requires=VELOCITY,
        seams=LATENTS,
        static=True,
        reads_latents=True,
        corrects_computed=True,
        memory=Needs(evaluations=1),
    )
    schedule: MeanCacheSchedule | None = None

    def __post_init__(self) -> None:
        if self.schedule is None:
            raise PolicyError(
                "EdgeVelocity needs schedule=MeanCacheSchedule(...): its correction reaches to "
                "the end of the edge; AverageVelocity does without"
            )

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        assert self.schedule is not None
        spans = self.schedule.path.by_step(session.num_steps)
        session.state_of(self, lambda: spans)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        spans: tuple[int, ...] = step.session.state_of(self, tuple)
        trail = call.state_of(self, TrajectoryMemory)
        if call.ran:
            velocity, used = output, self._edge(step, call, trail, output, spans)
        else:
            newest = trail.back(1, call, step)
            assert newest is not None  # a reused branch was computed before
            velocity = used = newest.used.clone()
        trail.add(step, call, velocity, used, keep=max(spans, default=0) + 1)
        return used

    def _edge(
        self,
        step: Step,
        call: Call,
        trail: TrajectoryMemory,
        velocity: Tensor,
        spans: tuple[int, ...],
    ) -> Tensor:
        """The velocity of the edge that starts here; the network's own without a correction.

        With K steps back to r: v + (sigma_end - sigma) * slope(r..now), in float32 or wider.
        """
        assert self.schedule is not None
        span = spans[step.index]
        earlier = trail.back(span, call, step) if span > 1 else None
        if earlier is None:
            return velocity
        wide = torch.promote_types(call.x.dtype, torch.float32)
        change = measure_slope(call.x.to(wide), step.interval.start, earlier)
        if change is None:
            return velocity
        last = next((node for node in self.schedule.path.fresh if node > step.index), None)
        end = step.session.sigmas[-1 if last is None else last]
        length = end - step.interval.start
        return (velocity.to(wide) + length * change).to(call.x.dtype)
