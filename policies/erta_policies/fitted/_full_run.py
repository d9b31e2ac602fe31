"""The full run of the calibration samples, recorded as a goal for their cached runs."""

from __future__ import annotations

import torch
from torch import Tensor

from erta_framework import Call, Policy, SessionInfo, Step, Traits, hookimpl
from erta_framework.calibration import SampleWith, Solution
from erta_policies.fitted._batch_checks import require_one_step


class TrajectoryRecorder(Policy):
    """Keeps the latents of a run at every sigma, on the CPU.

    Attributes:
        into: Latents of each batch, at each sigma in turn.
        sigmas: The sigmas, once a batch has begun.
    """

    traits = Traits(static=True, deterministic=True)
    into: list[list[Tensor]]
    sigmas: list[float]

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_one_step(session)
        self.sigmas[:] = session.sigmas
        self.into.append([])

    @hookimpl
    def forward(self, step: Step, call: Call) -> None:
        if step.index == 0 and not self.into[-1]:
            self.into[-1].append(call.x.cpu())

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        latents = self.into[-1]
        if len(latents) == 1:  # a call may hold several branches
            latents[0] = latents[0][: len(sample)]
        latents.append(sample.cpu())


def record_full_run(sample: SampleWith) -> Solution:
    """The full run of the calibration samples, as if it were their solution.

    Args:
        sample: The samples under policies.
    """
    recorder = TrajectoryRecorder(into=[], sigmas=[])
    sample((recorder,))
    latents = torch.cat([torch.stack(batch, dim=1) for batch in recorder.into])
    steps = len(recorder.sigmas) - 1
    return Solution(tuple(recorder.sigmas), latents, 0.0, substeps=1, calls=steps)
