"""`PipelineRequest`: what is known of one pipeline call while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from erta_framework import Interval, Schedule, Session, Site
from erta_framework.budgets import Tier
from erta_framework.modules import ModuleRun
from erta_integrations.diffusers.network import OutputSpec
from erta_integrations.diffusers.pipeline._branches import Branches
from erta_integrations.diffusers.pipeline._call_frame import CallFrame
from erta_integrations.diffusers.pipeline._network_state import NetworkWatch
from erta_integrations.diffusers.pipeline._observers import Observers
from erta_integrations.diffusers.trunk import TrunkLayout

UNREAD = Schedule((0.0,), (0.0,))

SpecKey = tuple[Site, torch.Size, torch.dtype]
"""What a spec or a layout is valid for: a site, and shape and dtype of the latents."""


@dataclass(slots=True, eq=False)
class PipelineRequest:
    """One pipeline call.

    The schedule is read at the first network call, because pipelines still change the grid after
    `set_timesteps`.

    Attributes:
        call: The running call of the pipeline, or the loop by hand around its parts.
        pipe: The pipeline that runs; for a loop by hand, the attached one.
        scheduler: Its scheduler.
        tier: The budget that it was given; None where it is that of the attachment.
        number: Requests of this attachment before this one.
        contexts: The branches that the pipeline names now, innermost last.
        branches: Names the branches.
        watch: Names the networks after changes inside them.
        observers: Refuses to reuse a call of which more than its answer is read.
        announced: The steps that its progress bar counts; None where that is not known.
        schedule: Its sigmas and timesteps, of the steps that it runs.
        session: Its session, from the first network call on.
        index: The step that runs, or the next one.
        previous: The step before, as it was settled; None before the first.
        in_step: Whether a step has begun and not ended.
        timestep: The scheduler's timestep of this step.
        passed_timestep: What the pipeline passed to its network as the timestep of this step.
        passed_timesteps: The same for all steps so far, by network and branch, by `timestep`.
        specs: How each site returns its prediction.
        layouts: The trunk of each site.
        modules: Its network calls through the gates, where policies own places inside.
    """

    call: CallFrame
    pipe: Any
    scheduler: Any
    tier: Tier | None = None
    number: int = 0
    contexts: list[str] = field(default_factory=list)
    branches: Branches = field(default_factory=Branches)
    watch: NetworkWatch = field(default_factory=NetworkWatch)
    observers: Observers = field(default_factory=Observers)
    announced: int | None = None
    schedule: Schedule = UNREAD
    session: Session | None = None
    index: int = 0
    previous: Interval | None = None
    in_step: bool = False
    timestep: float = 0.0
    passed_timestep: Any = None
    passed_timesteps: dict[tuple[str, str], dict[float, Any]] = field(default_factory=dict)
    specs: dict[SpecKey, OutputSpec] = field(default_factory=dict)
    layouts: dict[SpecKey, TrunkLayout] = field(default_factory=dict)
    modules: ModuleRun | None = None

    def count_bytes(self) -> None:
        """Note in the trace what is held beside the history."""
        held = [spec.rest for spec in self.specs.values()]
        held += [other for spec in self.specs.values() for other in spec.others]
        held += [kept for layout in self.layouts.values() for kept in layout.residuals.values()]
        if self.session is not None:
            trace = self.session.trace
            trace.driver_bytes = max(trace.driver_bytes, sum(map(count_nbytes, held)))

    def clear(self) -> None:
        """Release everything that was learned in this request."""
        self.specs.clear()
        self.layouts.clear()
        self.passed_timesteps.clear()
        self.branches.clear()


def count_nbytes(value: Any) -> int:
    """Bytes of a tensor or a list of tensors; 0 for anything else."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(count_nbytes, value)) if isinstance(value, list | tuple) else 0
