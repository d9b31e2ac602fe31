"""`PlanObserver`: sees the latents that a run begins and ends with."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from erta_framework import Call, Step, hookimpl
from erta_policies.procache._scores import KIND
from erta_policies.shared import RunProfiler, require_computed


@dataclass(slots=True)
class Ends:
    """What a request began with, and what it ended with."""

    start: Tensor | None = None
    end: Tensor | None = None


class PlanObserver(RunProfiler):
    """Base of the rounds of `ProCacheProfiler`: sees the latents that a run begins and ends with.

    Source: ours.
    """

    kind = KIND

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        output = yield
        require_computed(self, step, call)
        ends = step.session.state_of(self, Ends)
        if ends.start is None:
            ends.start = call.x[: step.session.shape[0]].clone()  # batched guidance repeats them
        return output

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        if step.index == step.num_steps - 1:
            step.session.state_of(self, Ends).end = sample.clone()
