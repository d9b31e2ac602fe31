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

PLANNED = "trial:places"
"""Capability of drivers whose trials can run places inside the network by another plan."""

TWO_BRANCHES = "two_branches"
"""Capability of drivers whose network is not distilled for guidance, so that runs evaluate it with
and without the prompt."""

STOCHASTIC = "stochastic"
"""Capability of drivers whose steps draw noise; what needs the same run twice refuses them."""

Reused = Literal["residual", "output"]
"""What a reused call takes from the newest evaluation, where no policy predicts."""

NOISY_PREDICTIONS = frozenset({"epsilon", "sample", "v_prediction"})
"""Predictions that latents do not add up with: a residual against them means nothing."""


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
        prediction: What the network predicts: `"velocity"`, `"epsilon"`, `"sample"` or
            `"v_prediction"`; empty where the driver does not know. It decides `reused`.
        guidance: Description of the guidance, with its scale.
        capabilities: What the driver offers, such as `"first_order"`.
        first: Index of the first step that runs (img2img starts later than 0).
        request_id: Name of this request in traces.
        time_of: The timestep at any sigma, for trajectories that leave the nominal grid.
        divided: Whether other processes evaluate some of the branches.
        prompts: The prompts of the batch, where the driver knows them.
        row_branches: Guidance branches of the rows of a batched call, in chunks of equal size, such
            as `("uncond", "cond")`; empty where a call is one branch, or where it is not known.
        reused: What core reuses where no policy predicts; see `choose_reused`.
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
    prediction: str = ""
    guidance: str = "none"
    capabilities: frozenset[str] = frozenset()
    first: int = 0
    request_id: str = ""
    time_of: Callable[[float], float] = field(default=lambda sigma: 1000.0 * sigma, repr=False)
    divided: bool = False
    prompts: tuple[str, ...] = ()
    row_branches: tuple[str, ...] = ()
    states: StateStore = field(default_factory=StateStore, repr=False)
    reused: Reused = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # once, because it is looked up at every reused call
        object.__setattr__(self, "reused", choose_reused(self))

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


def choose_reused(session: SessionInfo) -> Reused:
    """What a reused call takes from the newest evaluation, where no policy predicts.

    `x + residual` is what papers publish for the velocities of flows, and for block stacks. A
    network that predicts noise, a clean sample or v gets its output reused, which is ours: its
    residual holds the latents of the earlier step, at another noise level. Without a known
    prediction, sigmas above 1 tell such a network, because a flow has none.

    Example:
        >>> run = dict(sigmas=(1.0, 0.0), times=(999.0,), shape=(1, 3, 8, 8))
        >>> run = dict(run, dtype=torch.float32, device=torch.device("cpu"))
        >>> [SessionInfo(**run, prediction=p).reused for p in ("velocity", "epsilon")]
        ['residual', 'output']
    """
    if session.seam is not Seam.LATENT:
        return "residual"
    known = {session.prediction} if session.prediction else session.capabilities
    if known & NOISY_PREDICTIONS:
        return "output"
    if session.prediction or "velocity" in known:
        return "residual"
    return "output" if max(session.sigmas) > 1.0 else "residual"


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
