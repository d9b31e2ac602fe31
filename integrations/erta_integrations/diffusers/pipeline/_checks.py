"""Checks while a pipeline runs: what it does must be what the driver assumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from torch import nn

from erta_framework import Policy
from erta_framework.errors import CapabilityError, ConflictError, ProtocolError
from erta_integrations.diffusers.network import find_argument, is_compiled_in_place
from erta_integrations.diffusers.pipeline._call_frame import CallFrame
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
    found = find_index(request.scheduler, timestep, request.schedule, request.index)
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
        now = getattr(pipe, name, part)  # a pipeline that shares the scheduler may have fewer
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


def refuse_second_request(call: CallFrame, request: PipelineRequest, attached: Any) -> NoReturn:
    """Refuse a call that sets the timesteps of a scheduler while a request is on its way.

    Raises:
        ConflictError: Names both pipelines and the remedy.
    """
    place = "in another thread" if call.thread != request.call.thread else "around it"
    if request.call.is_suspended:
        place = "in a generator that is suspended"
    pipe = type(attached).__name__ if call.pipe is None else type(call.pipe).__name__
    raise ConflictError(
        f"{pipe} set the timesteps of {type(request.scheduler).__name__} while a request of "
        f"{type(request.pipe).__name__} runs on the same scheduler {place}, and a scheduler keeps "
        "the place of one request only; give each request a scheduler of its own: "
        "other = copy.copy(pipe), then other.scheduler = copy.deepcopy(pipe.scheduler)"
    )


def refuse_unknown_thread(name: str, network: nn.Module, request: PipelineRequest) -> NoReturn:
    """Refuse a network call in a thread that may work for a request, or for anybody else.

    Raises:
        ProtocolError: Names the network, the request and the remedy.
    """
    raise ProtocolError(
        f"{name} ({type(network).__name__}) was called in a thread that runs no pipeline while a "
        f"request of {type(request.pipe).__name__} runs in another, so it cannot be told whose "
        "call this is; call the network in the thread of its pipeline, or give the other loop a "
        "network of its own with copy.deepcopy before you attach"
    )
