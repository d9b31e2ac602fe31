"""`TrajectoryRecorder`: keeps the latents after every step, to see where runs drift apart."""

from __future__ import annotations

import torch
from torch import Tensor

from erta_framework.calibration import Profile, make_fingerprint
from erta_framework.plugins import Policy, Traits, hookimpl
from erta_framework.session import SessionInfo, Step

KIND = "trajectory_recorder"


class TrajectoryRecorder(Policy):
    """Observes a run and emits its latents, `latents` `[steps, B, C, ...]`, one a request.

    All steps are held in memory: record a few samples, not a benchmark.

    Example:
        >>> run = Sampler([TrajectoryRecorder()]).sample(model, prompts)  # doctest: +SKIP
        >>> run.emitted[0].statistics["latents"].shape  # doctest: +SKIP
        torch.Size([50, 2, 3, 5, 16, 16])
    """

    traits = Traits(static=True)

    @hookimpl
    def post_step(self, step: Step, sample: Tensor) -> None:
        step.session.state_of(self, list[Tensor]).append(sample.detach().to("cpu", copy=True))

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        latents = session.state_of(self, list[Tensor])
        if error is not None or not latents:
            return None
        return Profile(
            kind=KIND,
            fingerprint=make_fingerprint(session),
            statistics={"latents": torch.stack(latents)},
            samples=session.shape[0],
        )
