"""The frozen records that drivers, the engine and policies exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError, PolicyError, ProtocolError

S = TypeVar("S")

DDIM_LEVELS = "ddim_levels"
"""Capability: steps are DDIM's with eta 0 on predicted noise, and sigma is the noise's factor."""

TRIAL = "trial"
"""Capability of drivers that can run the network on other latents, see `Call.trial`."""

RESIZED = "trial:resized"
"""Capability of drivers whose trials take latents of another size than those of the call."""

Trial = Callable[[Tensor, float | None], Tensor]
"""Runs the network on latents `[B, C, ...]` at a time (None is the step's) for one branch."""


class Seam(StrEnum):
    """Where a call may be answered without the network.

    `LATENT` is the whole network, latent in and prediction out. `TRUNK` is the block stack only
    (embedders and head still run). `MODULE` is a selected submodule.
    """

    LATENT = "latent"
    TRUNK = "trunk"
    MODULE = "module"

    __hash__ = str.__hash__  # that of an enum is written in Python, and keys hold a seam


@dataclass(frozen=True, slots=True)
class Interval:
    """One integration interval of the sampling trajectory.

    Attributes:
        index: Position in the schedule, 0 is the noisiest; given by the driver.
        start: Sigma where the trajectory really is.
        end: Sigma where the solver will take it.
        time: What the network is told at `start`, in its own unit (often 1000 * sigma).
        end_time: What the network will be told at `end`, on the next interval.
    """

    index: int
    start: float
    end: float
    time: float
    end_time: float


@dataclass(frozen=True, slots=True)
class Compute:
    """The decision to run the network.

    Attributes:
        reason: A few words for the trace.
        scope: `"step"` shares the decision with the other branches of this step; `"branch"`
            keeps it to this call.
    """

    reason: str
    scope: str = "step"


@dataclass(frozen=True, slots=True)
class Reuse:
    """The decision to answer from what is cached.

    Attributes:
        reason: A few words for the trace.
        scope: As in `Compute`.
        mask: Which samples of the batch may be answered from what is cached, `[B]` booleans; the
            network runs on the others only. None is the whole batch. A tensor is read back to
            the host here. Only policies that declare `per_sample = True` may give one.
        branch: Name of another branch whose history stands in for that of this call: its newest
            residual on top of this call's input. Only for one branch, so with scope `"branch"`.

    Raises:
        PolicyError: The mask holds something else, or a step is to be answered from one branch.

    Example:
        >>> Reuse("small change", mask=torch.tensor([0.1, 0.9]) < 0.5).mask
        (True, False)
    """

    reason: str
    scope: str = "step"
    mask: Sequence[bool] | Tensor | None = None
    branch: str | None = None

    def __post_init__(self) -> None:
        if self.branch is not None and self.scope != "branch":
            raise PolicyError(
                f"Reuse({self.reason!r}) takes the history of branch {self.branch!r} for every "
                'branch of the step, itself among them; give scope="branch"'
            )
        given = self.mask
        if given is None:
            return
        values = given.tolist() if isinstance(given, Tensor) else list(given)
        if not isinstance(values, list) or not all(isinstance(value, bool) for value in values):
            kind = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else given
            raise PolicyError(
                f"the mask of Reuse({self.reason!r}) is {kind}; give one boolean a sample, [B]"
            )
        object.__setattr__(self, "mask", tuple(values))


Decision = Compute | Reuse

Stamp = tuple[int, float, float]
"""When one sample was computed: step, sigma, network time."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One computed evaluation that was kept because a policy declared that it needs it.

    Attributes:
        index: Step at which the network ran; of the newest sample where they differ.
        sigma: Where the trajectory was.
        time: What the network was told.
        residual: `output - input`, `[B, C, ...]`.
        input: The network's input, kept only when some policy's `Needs` ask for pairs.
        output: The raw output, kept only when some policy's `Needs` ask for pairs.
        stamps: Step, sigma and time of each sample, after a per-sample decision made them
            differ; else empty. In `forward`, reused samples come in groups that share theirs.
    """

    index: int
    sigma: float
    time: float
    residual: Tensor
    input: Tensor | None = None
    output: Tensor | None = None
    stamps: tuple[Stamp | None, ...] = ()

    def steps(self, batch: int) -> tuple[int, ...]:
        """Step at which each of `batch` samples was computed."""
        if not self.stamps:
            return (self.index,) * batch
        return tuple(self.index if stamp is None else stamp[0] for stamp in self.stamps)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy wants remembered: memory is what was declared, and is reported.

    Attributes:
        evaluations: How many computed evaluations of each branch to keep.
        pairs: Whether to keep inputs and outputs besides the residual.
    """

    evaluations: int = 0
    pairs: bool = False


class StateStore:
    """Per-policy state of one request, created on first use and dropped with the session."""

    __slots__ = ("_states",)

    def __init__(self) -> None:
        self._states: dict[tuple[int, object], object] = {}

    def get(self, policy: object, key: object, factory: Callable[[], S]) -> S:
        """The state of `policy` under `key`; `factory` makes it the first time."""
        slot = (id(policy), key)
        if slot not in self._states:
            self._states[slot] = factory()
        return self._states[slot]  # type: ignore[return-value]

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()


@dataclass(frozen=True, slots=True, eq=False)
class SessionInfo:
    """Read-only facts of one request; every policy sees the same.

    Attributes:
        sigmas: The nominal schedule, `num_steps + 1` values, ending where sampling ends.
        times: What the network is told at each of the first `num_steps` sigmas.
        shape: Shape of the latents, `[B, C, ...]`.
        dtype: Type of the latents.
        device: Where the latents live.
        branches: Names of the guidance branches, such as `("cond", "uncond")`; empty where the
            driver learns them as they are called.
        channel_dim: Dimension of the latents that holds the channels.
        model: Facts that identify the network (class, hash of its configuration).
        solver: Description of the solver, with its settings.
        guidance: Description of the guidance, with its scale.
        capabilities: What the driver offers, such as `"first_order"`.
        first: Index of the first step that runs (img2img starts later than 0).
        request_id: Name of this request in traces.
        time_of: The network time of any sigma, for trajectories that leave the nominal grid.
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


class Network:
    """Runs the network at most once and remembers the raw output and that it ran.

    Args:
        compute: Runs the network.
        on_output: Told the raw output at once, before any policy can touch it.
    """

    __slots__ = (
        "_compute",
        "_on_output",
        "_version",
        "asked",
        "failure",
        "output",
        "reason",
        "trials",
    )

    def __init__(
        self, compute: Callable[[], Tensor], on_output: Callable[[Tensor], None] | None = None
    ) -> None:
        self._compute = compute
        self._on_output = on_output
        self._version: int | None = None
        self.output: Tensor | None = None
        self.failure: BaseException | None = None
        self.reason = ""
        self.asked: tuple[str, ...] = ()
        self.trials = 0

    def __call__(self) -> Tensor:
        """The raw output; the first call runs the network.

        Raises:
            ProtocolError: The network returned something that is no tensor.
        """
        if self.output is None:
            try:
                output = self._compute()
            except BaseException as error:
                self.failure = error
                raise
            if not isinstance(output, Tensor):
                raise ProtocolError(
                    f"the network returned {type(output).__name__}, it must return a tensor; "
                    "unpack its output in the compute function"
                )
            # inference tensors do not count writes
            self._version = None if output.is_inference() else output._version
            self.output = output
            if self._on_output is not None:
                self._on_output(output)
        return self.output

    @property
    def written(self) -> bool:
        """Whether someone wrote into the raw output after the network returned it."""
        if self.output is None or self._version is None:
            return False
        return self.output._version != self._version

    @property
    def ran(self) -> bool:
        """Whether the network ran."""
        return self.output is not None


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One evaluation of one branch at one seam.

    Attributes:
        x: The network's input, `[B, C, ...]`; policies must not write into it.
        branch: Name of the guidance branch.
        model: Name of the network within the pipeline (two-network pipelines have two).
        seam: Where this call may be answered.
        history: Computed evaluations of this branch, newest first; as many as policies need. Those
            of another branch where the decision says that it stands in.
        decision: What was decided; in `decide` itself still `Compute("undecided")`.
        compute: Runs the network at most once and returns its raw output.
        rows: Places in the batch of the samples in `x`, in a `forward` on part of the batch that
            a per-sample decision made; None is the whole batch.
        kept: Histories of every network, branch and seam of the request; see `peers`.
        run_trial: Runs the network on other latents, where the driver can; see `trial`.
        answers: What the branches of this step that were called before this one were answered,
            where a policy `revises`.
    """

    x: Tensor
    branch: str
    model: str
    seam: Seam
    history: tuple[Evaluation, ...]
    decision: Decision
    compute: Network
    features: Mapping[str, Callable[[], Tensor]]
    states: StateStore
    rows: tuple[int, ...] | None = None
    kept: Mapping[tuple[str, str, Seam], tuple[Evaluation, ...]] = field(
        default_factory=dict, repr=False
    )
    run_trial: Trial | None = field(default=None, repr=False)
    answers: Mapping[str, Answer] = field(default_factory=dict, repr=False)

    def peers(self) -> tuple[Call, ...]:
        """The other branches of this network that have a history, as calls on the same latents.

        For rules that ask every branch before the first is answered; a peer has its own history
        and state, no features, and must not be answered.
        """
        return tuple(
            replace(self, branch=branch, history=history, features={}, run_trial=None)
            for (model, branch, seam), history in self.kept.items()
            if model == self.model
            and seam is self.seam
            and branch != self.branch
            and (not history or history[0].residual.shape == self.x.shape)
        )

    @property
    def reused(self) -> bool:
        """Whether this call is to be answered without the network."""
        return isinstance(self.decision, Reuse)

    @property
    def ran(self) -> bool:
        """Whether the network has run for this call."""
        return self.compute.ran

    def state_of(self, policy: object, factory: Callable[[], S]) -> S:
        """This policy's own state for this network and branch; `factory` makes it once."""
        return self.states.get(policy, (self.model, self.branch, self.seam), factory)

    def feature(self, name: str) -> Tensor:
        """A signal that the driver offers by name, such as the modulated input of block 0.

        Raises:
            KeyError: The driver does not offer it.
        """
        if name not in self.compute.asked:
            self.compute.asked += (name,)
        return self.features[name]()

    def trial(self, x: Tensor | None = None, time: float | None = None) -> Tensor:
        """The network's raw output on other latents or at another time, under this condition.

        It answers nothing and is not remembered. The trace counts it as `trial_calls`, which are
        not among its `network_calls`. A policy that uses it has `"trial"` among its `requires`.

        Args:
            x: Latents with the batch of this call, `[B, C, ...]`; by default those of this call.
            time: What the network is told; by default what it is told in this step. A pipeline can
                be asked for the times of this and of earlier steps only.

        Raises:
            CapabilityError: The driver cannot run the network on this.
            PolicyError: The latents have another batch.

        Example:
            >>> moved = call.trial(call.x + 0.01)  # doctest: +SKIP
        """
        if self.run_trial is None:
            raise CapabilityError(
                f"no trial of branch {self.branch!r}: this driver runs the network on the latents "
                "of the step only, or was asked for part of a batch; policies that need trials "
                'declare requires = frozenset({"trial"}) and are refused where there are none'
            )
        x = self.x if x is None else x
        if x.shape[:1] != self.x.shape[:1]:
            raise PolicyError(
                f"a trial of branch {self.branch!r} got latents {tuple(x.shape)} for a call on "
                f"{tuple(self.x.shape)}; the condition needs the batch of the call"
            )
        try:
            output = self.run_trial(x, time)
        except BaseException as error:
            self.compute.failure = error
            raise
        self.compute.trials += 1
        return output


@dataclass(frozen=True, slots=True)
class Answer:
    """What one branch was answered in this step, as `adjust_interval` sees it.

    Attributes:
        decision: What was decided.
        output: The prediction that guidance will combine.
        computed: Whether the network ran.
        source: Step whose evaluation stood in, for a reused answer; else None.
    """

    decision: Decision
    output: Tensor
    computed: bool
    source: int | None
