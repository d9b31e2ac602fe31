"""What runs in each process of the cluster: it opens the model once, then samples on request."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from erta_framework.calibration import Profile
from erta_framework.plugins import Policy
from erta_integrations.fabric.jobs import Item, SampledItem, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker takes over from the process that asked for the job.

    Attributes:
        folder: Where relative paths, such as those of profiles, begin.
        variables: Variables of the environment.
    """

    folder: str
    variables: Mapping[str, str]

    def enter(self) -> None:
        """Take them over; a machine that lacks the folder stays where it is."""
        # a relative path that does not exist then is named by whoever reads it
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        os.environ.update(self.variables)


class JobWorker:
    """One process of a job, on one device.

    Args:
        make: The `open` of a `JobRequest` or a `CalibrationRequest`.
        accelerator: `"cpu"` or `"cuda"`; Ray shows a worker its own device alone.
        precision: As of `Sampler`.
        surroundings: Of the process that asked for the job.

    Example:
        >>> from erta_framework.testing import AffineFlow
        >>> from erta_framework import Sampler
        >>> around = Surroundings(folder=".", variables={})
        >>> worker = JobWorker(lambda *_: (Sampler(num_steps=2), AffineFlow()), "cpu", "32", around)
        >>> worker.open()
        >>> worker.known()
        ('steps', 'sigmas', 'guidance', 'policies')
    """

    def __init__(
        self,
        make: Callable[[str, str], Any],
        accelerator: str,
        precision: str,
        surroundings: Surroundings,
    ) -> None:
        self._make, self._precision = make, precision
        self._device = torch.device(accelerator)
        self._surroundings = surroundings

    def open(self) -> None:
        """Make the sampler and its model, or the pipeline."""
        self._surroundings.enter()
        self._opened = self._make(self._device.type, self._precision)
        self._source = open_source(self._opened, self._device, self._place)

    def known(self) -> tuple[str, ...]:
        """Keys that a request may override."""
        return tuple(self._source.known)

    def identity(self) -> dict[str, Any]:
        """The facts that decide what is made."""
        return self._source.identity()

    def check(self, overrides: Mapping[str, Any]) -> None:
        """Raise an `ErtaError` on impossible overrides."""
        self._source.check(overrides)

    def sample(self, items: Sequence[Item]) -> list[SampledItem]:
        """Sample requests of equal overrides."""
        return self._source.sample(items)

    def calibrate(self, prompts: Sequence[str], seed: int, profiler: Policy) -> Profile:
        """The profile of some prompts; prompt k has seed + k."""
        sampler, model = self._opened
        found: Profile = sampler.calibrate(
            self._place(model), prompts, seed=seed, profiler=profiler
        )
        return found

    def _place(self, model: Any) -> Any:
        """A model on this worker's device, ready to sample."""
        if not isinstance(model, nn.Module):
            return model
        return model.eval().requires_grad_(False).to(self._device)
