"""`Request`: what is known of one pipeline call while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from erta_framework import Interval, Schedule, Session, Site
from erta_integrations.diffusers.network import OutputForm
from erta_integrations.diffusers.pipeline._branches import Branches
from erta_integrations.diffusers.pipeline._call_frame import PipelineCall
from erta_integrations.diffusers.pipeline._fingerprint import AdapterWatch
from erta_integrations.diffusers.trunk import Chain

UNREAD = Schedule((0.0,), (0.0,))

FormKey = tuple[Site, torch.Size, torch.dtype]
"""What a learned form holds for: a site, and the shape and type of the latents."""


@dataclass(slots=True)
class Request:
    """One pipeline call: its schedule, session and what was learned of the network's shapes.

    The schedule is read at the first network call, because pipelines still change the grid after
    `set_timesteps`.
    """

    number: int
    call: PipelineCall | None = None
    branches: Branches = field(default_factory=Branches)
    adapters: AdapterWatch = field(default_factory=AdapterWatch)
    schedule: Schedule = UNREAD
    session: Session | None = None
    index: int = 0
    carried: Interval | None = None
    in_step: bool = False
    told: Any = None
    time: float = 0.0
    times: dict[tuple[str, str], dict[float, Any]] = field(default_factory=dict)
    forms: dict[FormKey, OutputForm] = field(default_factory=dict)
    chains: dict[FormKey, Chain] = field(default_factory=dict)

    def count_bytes(self) -> None:
        """Note in the trace what is held beside the history."""
        held = [form.rest for form in self.forms.values()]
        held += [other for form in self.forms.values() for other in form.others]
        held += [stream for chain in self.chains.values() for stream in chain.residuals.values()]
        if self.session is not None:
            trace = self.session.trace
            trace.driver_bytes = max(trace.driver_bytes, sum(map(size_of, held)))


def size_of(value: Any) -> int:
    """Bytes of a tensor or a list of tensors; 0 for anything else."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0
