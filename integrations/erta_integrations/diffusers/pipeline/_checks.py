"""Checks while a pipeline runs: what it does must be what the driver assumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from erta_framework import Policy
from erta_framework.errors import CapabilityError, ProtocolError
from erta_integrations.diffusers.network import find_argument, is_compiled_in_place
from erta_integrations.diffusers.pipeline._request import PipelineRequest
from erta_integrations.diffusers.pipeline._schedulers import find_index


def require_output_reuse(
    policies: Sequence[Policy],
    name: str,
    network: nn.Module,
    output: tuple[int, ...],
    latents: tuple[int, ...],
) -> None:
    """Refuse policies that compare latents with an output of another shape.

    Raises:
        CapabilityError: Names the policies and both shapes.
    """
    asking = [repr(policy) for policy in policies if policy.traits.reads_latents]
    if asking:
        raise CapabilityError(
            f"{name} ({type(network).__name__}) returns {output} for latents "
            f"{latents}, so there is no residual, and {' and '.join(asking)} compares latents; "
            "use policies that reuse the whole output, such as skip_policy"
        )


def check_clock(
    scheduler: Any,
    request: PipelineRequest,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Refuse a `scheduler.step` of another step than that of the network calls before it.

    Raises:
        ProtocolError: Names both steps.
    """
    timestep = find_argument("timestep", original, args, kwargs)
    if timestep is None:
        return
    found = find_index(scheduler, timestep, request.schedule, request.index)
    if found is None or found == request.index:
        return
    before = request.previous
    # after a moved step, the timestep of the next one is no longer that of the schedule
    if before is None or before.end_time == request.schedule.times[request.index]:
        raise ProtocolError(
            f"request {request.number}: the pipeline steps index {found} of its timesteps, "
            f"the network was called for step {request.index}; this pipeline runs its steps "
            "in an order that cannot be followed"
        )


def refuse_replaced_parts(pipe: Any, scheduler: Any, parts: Mapping[str, nn.Module]) -> None:
    """Refuse a pipeline whose parts were replaced since it was attached.

    Raises:
        ProtocolError: The scheduler or a network was replaced.
        CapabilityError: A network was compiled in place.
    """
    for name, part in {"scheduler": scheduler, **parts}.items():
        now = getattr(pipe, name)
        if now is not part:
            raise ProtocolError(
                f"the {name} of {type(pipe).__name__} was replaced after attach "
                f"({type(part).__name__} / {type(now).__name__}); set it first, then attach"
            )
    for name, network in parts.items():
        if is_compiled_in_place(network):
            raise CapabilityError(
                f"{name} ({type(network).__name__}) was compiled in place after attach, which "
                "would trace the engine; compile first with "
                f"pipe.{name} = torch.compile(pipe.{name}), then attach"
            )
