"""`Call`: one evaluation at one site, as policies see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from erta_framework.errors import CapabilityError, PolicyError, ProtocolError
from erta_framework.session._computation import Computation
from erta_framework.session._decisions import Answer, Decision, Reuse
from erta_framework.session._evaluation import Evaluations
from erta_framework.session._function_network import FunctionNetwork
from erta_framework.session._network import TrialPlan
from erta_framework.session._site import Seam, Site
from erta_framework.session._state import StateStore

S = TypeVar("S")


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What a request remembers, as far as policies may see it.

    Attributes:
        states: The policies' own state.
        kept: Histories of every site.
    """

    states: StateStore
    kept: Mapping[Site, Evaluations] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One evaluation at one site, as policies see it.

    Attributes:
        x: The network's input, `[B, C, ...]`; policies must not write into it.
        site: Network, guidance branch and place inside the network.
        history: Computed evaluations of this site, newest first; as many as policies need. Those
            of another branch where the decision lends its history.
        decision: What was decided; in `decide` itself still `Compute("undecided")`.
        compute: Runs the network at most once and returns its raw output.
        rows: After a per-sample decision, `forward` may get part of the batch: the places in the
            batch of the samples in `x`. None is the whole batch.
        answers: Results of the branches of this step that came before, by branch; only for
            policies whose traits say `sees_every_branch`.
        memory: What the request remembers; use `state_of` and `peers`.
    """

    x: Tensor
    site: Site
    history: Evaluations
    decision: Decision
    compute: Computation
    rows: tuple[int, ...] | None = None
    answers: Mapping[str, Answer] = field(default_factory=dict, repr=False)
    memory: Memory = field(default_factory=lambda: Memory(StateStore()), repr=False)

    @property
    def branch(self) -> str:
        """Name of the guidance branch."""
        return self.site.branch

    @property
    def model(self) -> str:
        """Name of the network within the pipeline."""
        return self.site.model

    @property
    def seam(self) -> Seam:
        """What is skipped where this call is reused."""
        return self.site.seam

    @property
    def reused(self) -> bool:
        """Whether the decision is to predict without running the network."""
        return isinstance(self.decision, Reuse)

    @property
    def ran(self) -> bool:
        """Whether the network has run for this call."""
        return self.compute.ran

    def peers(self) -> tuple[Call, ...]:
        """The other branches of this network that have a history, as calls on the same latents.

        For rules that look at every branch before they decide for the first (`reads_peers` in
        their traits). A peer has its own history and state, but no signals, and cannot be computed.
        """
        return tuple(
            replace(self, site=site, history=history, compute=Computation(NO_PEER))
            for site, history in self.memory.kept.items()
            if site.model == self.model
            and site.path == self.site.path
            and site.branch != self.branch
            and (not history or history[0].example.shape == self.x.shape)
        )

    def state_of(self, policy: object, factory: Callable[[], S]) -> S:
        """This policy's own state for this site; `factory` makes it once."""
        return self.memory.states.get(policy, self.site, factory)

    def offers(self, name: str) -> bool:
        """Whether the driver offers a signal of this name."""
        return self.compute.network.offers(name)

    def feature(self, name: str) -> Tensor:
        """A signal that the driver offers by name, such as the modulated input of block 0.

        Raises:
            KeyError: The driver does not offer it.
        """
        return self.compute.signal(name)

    def trial(
        self,
        x: Tensor | None = None,
        time: float | None = None,
        plan: TrialPlan | None = None,
    ) -> Tensor:
        """The network's raw output on other latents or at another timestep, under this condition.

        The output is neither the prediction of the step nor kept in the history. The trace counts
        it in `trial_calls`, not in `network_calls`. A policy that uses trials requires `"trial"`
        in its traits.

        In a trial every place inside the network runs, unless there is a plan. With one, places
        may be reused from what is kept, so that several plans can be compared on the same latents.
        What is kept stays as it is, and `KEEP` means that a place runs. The trace counts such a
        trial as a whole one. A policy that gives a plan requires `"trial:places"` as well.

        Args:
            x: Latents with the batch of this call, `[B, C, ...]`; by default those of this call.
            time: The timestep; by default that of this step. In a pipeline it must be the
                timestep of this or of an earlier step.
            plan: Called once for each policy that owns places, with the `Parts` that its `assign`
                would see: what these places do in the trial.

        Raises:
            CapabilityError: The driver cannot run the network on this.
            PolicyError: The latents have another batch.

        Example:
            >>> moved = call.trial(call.x + 0.01)  # doctest: +SKIP
        >>> reused = call.trial(
        ...     plan=lambda parts: dict.fromkeys(parts.sites, ReuseKept())
        ... )  # doctest: +SKIP
        """
        x = self.x if x is None else x
        if x.shape[:1] != self.x.shape[:1]:
            raise PolicyError(
                f"a trial of branch {self.branch!r} got latents {tuple(x.shape)} for a call on "
                f"{tuple(self.x.shape)}; the condition needs the batch of the call"
            )
        try:
            return self.compute.run_at(x, time, plan)
        except CapabilityError as error:
            error.add_note(f"asked by a policy for a trial of branch {self.branch!r}")
            raise


def refuse_peer() -> Tensor:
    """Refuse to run the network for a branch that is only looked at."""
    raise ProtocolError("a peer of a call is there to be looked at; it must not be answered")


NO_PEER = FunctionNetwork(refuse_peer)
