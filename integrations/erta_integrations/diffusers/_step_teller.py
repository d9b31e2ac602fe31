"""`StepTeller`: shows the steps of a pipeline's request to observers while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from erta_framework.sampling import BatchEnd, Observers
from erta_framework.session import StepTrace
from erta_integrations.diffusers._attachment import Attachment


class StepTeller:
    """Tells observers of the steps of one request of an attached pipeline, as they are done.

    It is the pipeline's `callback_on_step_end`. A pipeline without one has its steps told at the
    end.
    """

    def __init__(self, run: Attachment, observers: Observers) -> None:
        self._run, self._observers = run, observers
        self._told = 0

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        """What a pipeline calls after a step; changes nothing."""
        trace = self._run.newest
        if trace is not None and len(trace.steps) > self._told:
            self._tell(trace.steps)
        return {}

    def finish(self, prompt: str, seed: int, samples: Tensor, seconds: float) -> None:
        """Tell of what is left, and that the request is done."""
        trace = self._run.newest
        if trace is None:
            return
        self._tell(trace.steps)
        self._observers.batch(
            BatchEnd((prompt,), (seed,), samples.clone(), deepcopy(trace), seconds)
        )

    def _tell(self, steps: Sequence[StepTrace]) -> None:
        for step in steps[self._told :]:
            self._observers.step(step)
        self._told = len(steps)
