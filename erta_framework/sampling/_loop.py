"""The sampling loop: one screen, seven extension points, no knowledge of any policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from erta_framework.calibration import Profile
from erta_framework.errors import CapabilityError, InputError
from erta_framework.modules import (
    MODULES,
    GatedNetwork,
    ModuleRun,
    ModuleSeam,
    PlaceFinder,
    parse_bytes,
)
from erta_framework.plugins import Engine
from erta_framework.sampling._network_call import Denoiser, DenoiserCall
from erta_framework.sampling.guidance import Guidance, NoGuidance
from erta_framework.sampling.solvers import KnowsScales, Schedule, Solver
from erta_framework.session import (
    GUIDED,
    PLANNED,
    PREFIX,
    RESIZED,
    TEXT,
    TRIAL,
    TWO_BRANCHES,
    Guided,
    Interval,
    Network,
    NetworkSignal,
    Session,
    SessionInfo,
    StepTrace,
    Trace,
    find_signals,
    make_site,
)

MODEL = "model"
"""Name of the loop's one network."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """The input of one run of the loop.

    Attributes:
        latents: Latents at the first sigma, `[B, C, ...]`.
        cond: Condition of the conditional branch, batch first.
        uncond: Condition of the unconditional branch, where guidance needs one.
        schedule: The nominal schedule.
        first: Index of the first step; img2img starts later than 0.
        model: Facts that identify the network, for profiles.
        request_id: Name in traces.
        prompts: What was encoded, one a sample, where it is known.
    """

    latents: Tensor
    cond: Tensor
    uncond: Tensor | None = None
    schedule: Schedule
    first: int = 0
    model: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The output of one run of the loop.

    Attributes:
        sample: Latents at the end of the schedule, `[B, C, ...]`.
        trace: What ran, and why.
        emitted: Profiles that profilers emitted.
    """

    sample: Tensor
    trace: Trace
    emitted: tuple[Profile, ...]


class SamplingLoop:
    """Samples with any network, solver and guidance under an engine's policies.

    Args:
        engine: The policies.
        solver: How the trajectory is integrated.
        guidance: How branches combine; none by default.
        memory: The most that places inside the network may keep in a request, such as `"2GiB"`.
        gradients: Let gradients through, from the samples to tensors that policies hold.

    Raises:
        CapabilityError: A policy needs something that the solver cannot do.
        InputError: `memory` is no size.

    Example:
        >>> loop = SamplingLoop(Engine([]), FlowEuler(), CFG(scale=3.0))  # doctest: +SKIP
    """

    def __init__(
        self,
        engine: Engine,
        solver: Solver,
        guidance: Guidance | None = None,
        memory: str | int | None = None,
        gradients: bool = False,
    ) -> None:
        self.engine, self.gradients = engine, gradients
        self.memory = None if memory is None else parse_bytes(memory)
        self.solver = solver
        self.guidance: Guidance = guidance if guidance is not None else NoGuidance()
        # which signals there are depends on the network, which comes with each run
        offered = list_capabilities(solver, self.guidance)
        engine.check(offered | engine.signals, type(solver).__name__)

    def run(
        self,
        network: Denoiser,
        request: Request,
        observe: Callable[[StepTrace], None] | None = None,
    ) -> Result:
        """Sample one batch.

        Args:
            network: Predicts velocity or noise, as the solver expects.
            request: Latents, conditions and schedule.
            observe: Called with the trace of each finished step.

        Raises:
            InputError: The latents do not fit, or the start index is outside the schedule.
        """
        check_request(request)
        x, schedule, state = request.latents, request.schedule, None
        settled = schedule.interval(request.first)
        found = find_signals(network) if self.engine.signals else {}
        with (
            torch.set_grad_enabled(self.gradients),
            self._gated(network) as seam,
            self.engine.session(self._info(request, found)) as session,
        ):
            modules = None if seam is None else ModuleRun(seam, session)
            for index in range(request.first, schedule.num_steps):
                if index > request.first:
                    settled = schedule.interval(index, settled.end, settled.end_time)
                branches = self.guidance.branches(
                    request.cond, request.uncond, index, schedule.num_steps
                )
                session.begin(settled, [branch.name for branch in branches])
                outputs = {}
                for branch in branches:
                    latents = branch.expand(x)
                    call: Network = DenoiserCall(network, latents, settled.time, branch, found)
                    site = make_site(MODEL, branch.name)
                    if modules is not None:
                        call = GatedNetwork(call, modules, MODEL, site, latents)
                    outputs[branch.name] = session.forward(site, latents, call)
                settled = session.settle()
                guided = self.guidance.combine(outputs)
                if session.adjusts:
                    guided = adjust_guided(session, self.solver, x, guided, settled)
                x, state = self.solver.step(x, guided, settled, state)
                session.end(x)
                if observe is not None:
                    observe(session.trace.steps[-1])
        return Result(x, session.trace, tuple(session.emitted))

    def _gated(self, network: Denoiser) -> AbstractContextManager[ModuleSeam | None]:
        """The gates on the modules that policies select; nothing where none does.

        Raises:
            CapabilityError: The network has no modules, or not those that are selected.
            ConflictError: Two policies select the same module, or another run has it.
        """
        if not self.engine.selecting:
            return nullcontext()
        if not isinstance(network, nn.Module):
            raise CapabilityError(
                f"{self.engine.selecting[0]!r} selects modules, but the network is a "
                f"{type(network).__name__}, no torch.nn.Module; remove the policy"
            )
        owners = self.engine.own_places(MODEL, network, PlaceFinder())
        return ModuleSeam({MODEL: network}, {MODEL: owners}, self.memory)

    def _info(
        self, request: Request, found: Mapping[str, NetworkSignal] | None = None
    ) -> SessionInfo:
        names = frozenset(PREFIX + name for name in found or {})
        return SessionInfo(
            sigmas=request.schedule.sigmas,
            times=request.schedule.times[:-1],
            shape=tuple(request.latents.shape),
            dtype=request.latents.dtype,
            device=request.latents.device,
            branches=self.guidance.names,
            model=dict(request.model),
            solver=repr(self.solver),
            prediction=self.solver.prediction,
            guidance=repr(self.guidance),
            capabilities=list_capabilities(self.solver, self.guidance) | names,
            first=request.first,
            request_id=request.request_id,
            time_of=self.solver.time_of,
            divided=getattr(self.guidance, "divided", False),
            prompts=request.prompts,
        )


def list_capabilities(solver: Solver, guidance: Guidance | None = None) -> frozenset[str]:
    """The capabilities of the loop with a solver: its own, trials of any size, text, modules.

    And two branches, unless the guidance has one; and the guided prediction, where the solver has
    `scales`.
    """
    two = guidance is None or len(guidance.names) > 1
    own = frozenset({TWO_BRANCHES} if two else ())
    if isinstance(solver, KnowsScales):
        own |= {GUIDED}
    return solver.capabilities | {TRIAL, RESIZED, PLANNED, MODULES} | own | TEXT


def adjust_guided(
    session: Session, solver: Solver, x: Tensor, prediction: Tensor, settled: Interval
) -> Tensor:
    """The guided prediction as the policies want the solver to get it, of the shape of `x`."""
    assert isinstance(solver, KnowsScales)  # else the policy was refused
    return session.adjust(Guided(x, prediction, *solver.scales(settled.start)))


def check_request(request: Request) -> None:
    """Refuse latents that do not fit the conditions or the schedule.

    Raises:
        InputError: Empty batch, unequal batch sizes, or a start index outside the schedule.
    """
    x = request.latents
    conditions: Sequence[Tensor] = [c for c in (request.cond, request.uncond) if c is not None]
    if x.ndim < 2 or x.shape[0] < 1 or not x.is_floating_point():
        raise InputError(
            f"latents must be floating [B, C, ...] with B >= 1, got {tuple(x.shape)} {x.dtype}"
        )
    for condition in conditions:
        if condition.shape[0] != x.shape[0]:
            raise InputError(
                f"latents have batch {x.shape[0]}, a condition has batch {condition.shape[0]}; "
                "give one condition per sample"
            )
    if not 0 <= request.first < request.schedule.num_steps:
        raise InputError(
            f"the first step is {request.first}, outside the {request.schedule.num_steps} steps "
            "of the schedule"
        )
