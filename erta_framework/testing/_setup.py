"""The fixed toy set-up that the checks run on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from erta_framework.calibration import Profile, calibrate
from erta_framework.errors import PolicyError
from erta_framework.plugins import Engine, Policy, Profiler, Traits, flatten, hookimpl
from erta_framework.sampling import (
    CFG,
    DDIM,
    Denoiser,
    FlowEuler,
    Guidance,
    Request,
    Result,
    SamplingLoop,
    Solver,
    sample_noise,
)
from erta_framework.session import Decision, Reuse, Session, Step
from erta_framework.testing._block_toy import BlockFlow
from erta_framework.testing._toy import Toy
from erta_framework.testing._toys import GaussianEpsilon, GaussianMixtureFlow


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySetup:
    """A toy, a solver, a guidance and a number of steps.

    Attributes:
        toy: Makes the network; a new one counts its calls from 0.
        solver: How the trajectory is integrated.
        guidance: How branches combine.
        num_steps: Steps of the schedule.
    """

    toy: Callable[[], Toy]
    solver: Solver
    guidance: Guidance
    num_steps: int

    def request(
        self,
        *,
        seed: int = 0,
        batch: int = 2,
        negative: str = "",
        dtype: torch.dtype = torch.float32,
        first: int = 0,
    ) -> Request:
        """A request that depends on nothing but these arguments."""
        toy = self.toy()
        seeds = [100 * seed + k for k in range(batch)]
        return Request(
            latents=sample_noise(toy.latent_shape, seeds).to(dtype),
            cond=toy.encode([f"sample {number}" for number in seeds]),
            uncond=toy.encode([negative] * batch),
            schedule=self.solver.schedule(self.num_steps),
            first=first,
            model=toy.fingerprint(),
            request_id=f"toy-{seed}",
            prompts=tuple(f"sample {number}" for number in seeds),
        )

    def run(self, engine: Engine, request: Request, network: Denoiser | None = None) -> Result:
        """The request through `SamplingLoop`."""
        loop = SamplingLoop(engine, self.solver, self.guidance)
        return loop.run(network if network is not None else self.toy(), request)

    def session(self, engine: Engine, request: Request) -> Session:
        """A session for the request, to be driven by hand."""
        return engine.session(SamplingLoop(engine, self.solver, self.guidance)._info(request))


FLOW = ToySetup(toy=GaussianMixtureFlow, solver=FlowEuler(), guidance=CFG(scale=2.0), num_steps=10)
"""The set-up of every check: a mixture flow, 10 Euler steps, CFG with two branches."""

NOISE = ToySetup(toy=GaussianEpsilon, solver=DDIM(), guidance=CFG(scale=2.0), num_steps=10)
"""The set-up for policies that require `"epsilon"`."""


BLOCKS = ToySetup(
    toy=partial(BlockFlow, depth=4), solver=FlowEuler(), guidance=CFG(scale=2.0), num_steps=10
)
"""The set-up for policies that own places inside a network: a toy with blocks."""


class AlternateSteps(Policy):
    """Reuses every odd step but the last, so that predictors and correctors have work to do.

    Source: ours, part of the conformance kit.
    """

    traits = Traits(static=True)

    @hookimpl
    def decide(self, step: Step) -> Decision | None:
        odd = step.index % 2 == 1 and step.index < step.num_steps - 1
        return Reuse("odd step") if odd else None


def choose_setup(policy: Policy) -> ToySetup:
    """The set-up whose solver offers what the policy requires."""
    if any(part.selects for part in flatten([policy])):
        return BLOCKS
    required = frozenset[str]().union(*(part.traits.requires for part in flatten([policy])))
    return NOISE if "epsilon" in required else FLOW


def make_engine(policy: Policy, before: Sequence[Policy] = ()) -> Engine:
    """The engine that the checks run: `before`, the policy, and `AlternateSteps` if it helps.

    A policy that decides nothing itself, emits nothing and implements `forward` or
    `adjust_interval` is a predictor, corrector or adjuster: alone it would have nothing to do.
    """
    alone = Engine([policy])
    acts = alone.implementers("forward") or alone.implementers("adjust_interval")
    busy = alone.implementers("decide") or alone.implementers("on_session_end")
    if acts and not busy:
        return Engine([*before, policy, AlternateSteps()])
    return Engine([*before, policy]) if before else alone


def make_fresh_engine(policy: Policy) -> Engine:
    """An engine of a copy, which shares nothing with the policy but its class."""
    return make_engine(copy.deepcopy(policy))


def toy_run(policies: Sequence[Policy] = (), *, seed: int = 0, setup: ToySetup = FLOW) -> Result:
    """Sample the toy under these policies, as the checks do.

    Example:
        >>> toy_run().trace.network_calls
        20
    """
    return setup.run(Engine(policies), setup.request(seed=seed))


def toy_profile(
    profiler: Policy, *, seeds: Sequence[int] = (11, 12, 13), setup: ToySetup | None = None
) -> Profile:
    """Calibrate on the toy, so that a policy that needs a profile can be checked.

    Args:
        profiler: Emits a profile from `on_session_end`.
        seeds: One request of two samples each.
        setup: The set-up; by default the one that the checks would run the profiler on.

    Raises:
        PolicyError: The profiler emitted nothing.

    Example:
        >>> toy_profile(MyProfiler())  # doctest: +SKIP
        <Profile my_profiler 41d8cd98, 6 samples>
    """
    if not seeds:
        raise PolicyError(f"toy_profile needs at least one seed, got {list(seeds)}")
    chosen = choose_setup(profiler) if setup is None else setup

    def run(current: Profiler) -> list[Profile]:
        copies = current.calibration_copies
        requests = [repeat_batch(chosen.request(seed=seed), copies) for seed in seeds]
        engine = Engine([current])
        return [p for request in requests for p in chosen.run(engine, request).emitted]

    return calibrate(profiler, run)


def repeat_batch(request: Request, copies: int) -> Request:
    """A request whose batch is repeated as a whole; see `Profiler.calibration_copies`."""
    if copies == 1:
        return request
    assert request.uncond is not None
    return replace(
        request,
        latents=torch.cat([request.latents] * copies),
        cond=torch.cat([request.cond] * copies),
        uncond=torch.cat([request.uncond] * copies),
    )
