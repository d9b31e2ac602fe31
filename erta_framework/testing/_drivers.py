"""Two drivers besides `SamplingLoop`: a loop without an engine, and a session driven by hand."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.modules import KEEP, GatedNetwork, ModuleRun, ModuleSeam, PlaceFinder
from erta_framework.sampling import Denoiser, DenoiserCall, Request, Result, adjust_guided
from erta_framework.session import Network, Session, Site
from erta_framework.testing._setup import ToySetup


@torch.no_grad()
def run_plain_loop(setup: ToySetup, request: Request, network: Denoiser) -> Tensor:
    """The bare sampling loop: no engine, no session, the network runs at every step."""
    x, state = request.latents, None
    for index in range(request.first, request.schedule.num_steps):
        interval = request.schedule.interval(index)
        outputs = {}
        for branch in setup.guidance.branches(
            request.cond, request.uncond, index, request.schedule.num_steps
        ):
            latents = branch.expand(x)
            time = torch.full((latents.shape[0],), interval.time, device=x.device)
            outputs[branch.name] = network(latents, time, branch.condition).to(x.dtype)
        x, state = setup.solver.step(x, setup.guidance.combine(outputs), interval, state)
    return x


@dataclass(frozen=True, slots=True)
class Verb:
    """What a hand-driven session has just done: the verb, the step and the tensors it handled."""

    name: str
    index: int
    tensors: tuple[Tensor, ...] = ()


@torch.no_grad()
def drive_by_hand(
    setup: ToySetup,
    session: Session,
    request: Request,
    network: Denoiser,
    *,
    keep_all: bool = False,
) -> Generator[Verb, None, Result]:
    """Drive a session by hand, pausing after every verb; the generator returns the result.

    Args:
        setup: Solver and guidance.
        session: The session.
        request: What is sampled.
        network: The network.
        keep_all: Whether every place inside the network is kept at every call, whatever its owner
            assigns.
    """
    x, state, schedule = request.latents, None, request.schedule
    settled = schedule.interval(request.first)
    with open_gates(session, network, keep_all) as seam, session:
        modules = None if seam is None else ModuleRun(seam, session)
        for index in range(request.first, schedule.num_steps):
            if index > request.first:
                settled = schedule.interval(index, settled.end, settled.end_time)
            branches = setup.guidance.branches(
                request.cond, request.uncond, index, schedule.num_steps
            )
            session.begin(settled, [branch.name for branch in branches])
            yield Verb("begin", index)
            outputs = {}
            for branch in branches:
                watched = WatchedDenoiser(network)
                x_in = branch.expand(x)
                site = Site(branch=branch.name)
                call: Network = DenoiserCall(watched, x_in, settled.time, branch)
                if modules is not None:
                    call = GatedNetwork(call, modules, site.model, site, x_in)
                answered = session.forward(site, x_in, call)
                outputs[branch.name] = answered
                yield Verb("forward", index, (x_in, *watched.raw, answered))
            settled = session.settle()
            guided = setup.guidance.combine(outputs)
            if session.adjusts:
                guided = adjust_guided(session, setup.solver, x, guided, settled)
            x, state = setup.solver.step(x, guided, settled, state)
            session.end(x)
            yield Verb("end", index, (x,))
    return Result(x, session.trace, tuple(session.emitted))


def open_gates(
    session: Session, network: Any, keep_all: bool
) -> AbstractContextManager[ModuleSeam | None]:
    """The gates of a session's policies on a toy, which may stand within other networks."""
    if not session.engine.selecting:
        return nullcontext()
    while not isinstance(network, nn.Module):
        network = network.toy
    owners = session.engine.own_places("model", network, PlaceFinder())
    if keep_all:
        owners = tuple(
            replace(owner, assign=lambda _, __, parts: dict.fromkeys(parts.sites, KEEP))
            for owner in owners
        )
    return ModuleSeam({"model": network}, {"model": owners})


class WatchedDenoiser:
    """A network that remembers the raw output of its last call on a whole batch."""

    def __init__(self, network: Denoiser) -> None:
        self.network = network
        self.raw: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """Run the network."""
        output = self.network(x, times, condition)
        self.raw = (output,)
        return output


def run_to_end(driver: Generator[Verb, None, Result]) -> Result:
    """Run a hand-driven session to its end."""
    while True:
        try:
            next(driver)
        except StopIteration as stop:
            result: Result = stop.value
            return result
