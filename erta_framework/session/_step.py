"""Facts of a request and of one step, as policies see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from erta_framework.session._site import Seam
from erta_framework.session._state import StateStore

S = TypeVar("S")
Kind = Literal["latents", "tokens"]

DDIM_LEVELS = "ddim_levels"
"""Capability: steps are DDIM's with eta 0 on predicted noise, and sigma is the noise's factor."""

TRIAL = "trial"
"""Capability of drivers that can run the network on other latents, see `Call.trial`."""

RESIZED = "trial:resized"
"""Capability of drivers whose trials take latents of another size than those of the call."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One integration interval of the sampling trajectory.

    Attributes:
        index: Position in the schedule, 0 is the noisiest; given by the driver.
        start: Sigma where the trajectory really is.
        end: Sigma where the solver will take it.
        time: The timestep that the network is given at `start`, in its own unit (often
            1000 * sigma).
        end_time: The timestep at `end`, which the network is given in the next interval.
    """

    index: int
    start: float
    end: float
    time: float
    end_time: float


@dataclass(frozen=True, slots=True, eq=False)
class SessionInfo:
    """Read-only facts of one request; every policy sees the same.

    Attributes:
        sigmas: The nominal schedule, `num_steps + 1` values, ending where sampling ends.
        times: The timestep that the network is given at each of the first `num_steps` sigmas.
        shape: Shape of the latents, `[B, C, ...]`.
        dtype: Type of the latents.
        device: Where the latents live.
        branches: Names of the guidance branches, such as `("cond", "uncond")`; empty where the
            driver learns them as they are called.
        channel_dim: Dimension of the latents that holds the channels.
        model: Facts that identify the network (class, hash of its configuration).
        seam: What a reused step skips in this request.
        kind: What is sampled: `"latents"`, or the `"tokens"` of a masked language model.
        solver: Description of the solver, with its settings.
        guidance: Description of the guidance, with its scale.
        capabilities: What the driver offers, such as `"first_order"`.
        first: Index of the first step that runs (img2img starts later than 0).
        request_id: Name of this request in traces.
        time_of: The timestep at any sigma, for trajectories that leave the nominal grid.
        divided: Whether other processes evaluate some of the branches.
        prompts: The prompts of the batch, where the driver knows them.
    """

    sigmas: tuple[float, ...]
    times: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    branches: tuple[str, ...] = ("cond",)
    channel_dim: int = 1
    model: Mapping[str, str] = field(default_factory=dict)
    seam: Seam = Seam.LATENT
    kind: Kind = "latents"
    solver: str = ""
    guidance: str = "none"
    capabilities: frozenset[str] = frozenset()
    first: int = 0
    request_id: str = ""
    time_of: Callable[[float], float] = field(default=lambda sigma: 1000.0 * sigma, repr=False)
    divided: bool = False
    prompts: tuple[str, ...] = ()
    states: StateStore = field(default_factory=StateStore, repr=False)

    @property
    def num_steps(self) -> int:
        """Number of steps of the nominal schedule."""
        return len(self.sigmas) - 1

    def state_of(self, policy: object, factory: Callable[[], S]) -> S:
        """This policy's own state for the whole request (not split by branch)."""
        return self.states.get(policy, None, factory)

    def adopt(self, policy: object) -> None:
        """Let a policy that was made during this request keep state.

        The policies of the engine may, and those that they hold in a field. One that is made while
        sampling, such as a rule with a threshold for this prompt, must be adopted first.
        """
        self.states.adopt(policy)


@dataclass(frozen=True, slots=True)
class Step:
    """One step as policies see it: the interval and the facts of the request."""

    interval: Interval
    session: SessionInfo
    branches: tuple[str, ...] = ()

    @property
    def index(self) -> int:
        """Position in the schedule."""
        return self.interval.index

    @property
    def num_steps(self) -> int:
        """Number of steps of the nominal schedule."""
        return self.session.num_steps
