"""`ChangeRule` and `FittedChangeRule`: bases of rules that sum a predicted change of the output."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from erta_framework import Call, Compute, Decision, Needs, Policy, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.plugins import choose_unit
from erta_framework.session import AHEAD
from erta_policies.shared._decisions import reuse_below
from erta_policies.shared._signal_memory import (
    TIMES,
    Signal,
    SignalMemory,
    read_signal,
    signal_capability,
)


class ChangeRule(Policy):
    """Base of skip rules that predict how much the output changes from how much a signal does.

    Each step, reused or not, the change of the signal since the step before becomes a predicted
    change of the output. These are summed since the last computed step; a step is reused while the
    sum is below the threshold. A subclass says which signal it is, how it predicts, and at which
    sum it computes. Core predicts the reused output.

    A signal of the timestep alone is known for all steps once the network has run for the first
    time in a request, if the driver offers it. After that nothing is measured and no value is read
    back, until a step leaves the nominal grid.

    Source: the rule of TeaCache, arXiv 2411.19108, which PromptTea (arXiv 2507.06739) shares.
    Knowing the changes ahead is ours.
    """

    if TYPE_CHECKING:
        per_sample: bool  # a setting of every subclass

    @property
    def watched_signal(self) -> Signal:
        """The signal whose change is measured."""
        raise NotImplementedError(f"{type(self).__name__} does not say which signal it watches")

    @property
    def effective_threshold(self) -> float:
        """The predicted change at which the network runs again."""
        raise NotImplementedError(f"{type(self).__name__} does not say at which change it computes")

    @property
    def decides_each_branch(self) -> bool:
        """Whether every guidance branch decides for itself."""
        raise NotImplementedError(f"{type(self).__name__} does not say which branch decides")

    def concerns(self, call: Call) -> bool:
        """Whether this rule decides about a call; others are passed on."""
        return True

    def observe_signal(self, step: Step, call: Call) -> Tensor:
        """The signal of a call, `[B, ...]`."""
        return read_signal(self.watched_signal, call)

    def predict_changes(self, step: Step, differences: Sequence[float]) -> tuple[list[float], str]:
        """Predict the output's changes.

        Args:
            step: The step.
            differences: Relative L1 change of the signal, one a sample or one for the batch.

        Returns:
            The changes, and for the trace what makes them doubtful; empty if nothing does.
        """
        raise NotImplementedError(f"{type(self).__name__} does not predict")

    @property
    def traits(self) -> Traits:
        return Traits(
            requires=signal_capability(self.watched_signal),
            reads_latents=self.watched_signal == "latents",
            memory=Needs(evaluations=1),
            decides=choose_unit(self.per_sample, self.decides_each_branch),
        )

    def _memory(self, step: Step, call: Call) -> SignalMemory:
        if self.decides_each_branch:
            return call.state_of(self, SignalMemory)
        shared = step.session.state_of(self, dict[str, SignalMemory])
        return shared.setdefault(call.model, SignalMemory())

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision | None:
        if not self.concerns(call):
            return None
        scope = "branch" if self.decides_each_branch else "step"
        memory, batch = self._memory(step, call), call.x.shape[0]
        differences = self._differences(memory, step, call)
        if not differences:
            return Compute("no signal of the step before", scope)
        changes, doubts = self.predict_changes(step, differences)
        sums = memory.changes.add(step.index, call.history[0].steps(batch), changes)
        reason = f"predicted change {max(sums):.4f}{doubts}"
        return reuse_below(sums, self.effective_threshold, reason, scope)

    def _differences(self, memory: SignalMemory, step: Step, call: Call) -> list[float]:
        """Change of the signal into this step; nothing if it is not known."""
        if memory.ahead and is_on_grid(step):
            return memory.take_ahead(step.index)
        # off the nominal grid, the changes that were known ahead no longer hold
        memory.ahead = []
        now = self.observe_signal(step, call)
        alone = self.per_sample and now.shape[0] == call.x.shape[0]
        change = memory.measure_change(step.index, now, alone)
        return [] if change is None else change.tolist()

    def _look_ahead(self, memory: SignalMemory, step: Step, call: Call) -> None:
        """Where the signal follows from the step alone, measure all of its changes at once."""
        name, memory.looked = self.watched_signal + AHEAD, True
        if self.watched_signal in TIMES and call.offers(name) and is_on_grid(step):
            signals = call.feature(name)
            if len(signals) == step.num_steps:
                alone = self.per_sample and signals.shape[1] == call.x.shape[0]
                memory.look_ahead(signals, alone)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        # the first step of a branch is computed without asking; the next compares with its signal
        if call.rows is None and self.concerns(call):
            memory = self._memory(step, call)
            if memory.index != step.index and memory.ahead and is_on_grid(step):
                memory.take_ahead(step.index)
            elif memory.index != step.index:
                memory.keep(step.index, self.observe_signal(step, call))
                if not memory.looked:
                    self._look_ahead(memory, step, call)
        return (yield)


class FittedPrediction(Protocol):
    """A fitted prediction, and the threshold that was published with it."""

    @property
    def signal(self) -> Signal: ...

    @property
    def threshold(self) -> float | None: ...


class FittedChangeRule(ChangeRule):
    """Base of change rules whose prediction was fitted: published, given, or of a profile.

    A subclass has a setting `threshold`, and gives the prediction as `source`.
    """

    @cached_property
    def source(self) -> FittedPrediction:
        """The fitted prediction, and what was published with it."""
        raise NotImplementedError(f"{type(self).__name__} does not say what was fitted")

    @property
    def effective_threshold(self) -> float:
        """The threshold in use.

        Raises:
            PolicyError: There is none.
        """
        return resolve_threshold(self, self.source.threshold, "predicted change")

    @property
    def watched_signal(self) -> Signal:
        """The signal of the fit."""
        return self.source.signal

    @property
    def decides_each_branch(self) -> bool:
        """Never for signals of the timestep, which are alike in all branches."""
        return self.watched_signal not in TIMES

    def prepare(self) -> None:
        _ = self.source, self.effective_threshold


def resolve_threshold(policy: Policy, published: float | None, what: str) -> float:
    """The threshold of a policy: its own setting, else the published one.

    Args:
        policy: With the setting `threshold`.
        published: The published threshold of its model; None if there is none.
        what: What the threshold is compared with, for the message.

    Raises:
        PolicyError: There is neither.
    """
    own: float | None = getattr(policy, "threshold")  # noqa: B009
    found = own if own is not None else published
    if found is None:
        raise PolicyError(f"{policy!r} needs threshold=<{what}>; none was published")
    return found


def is_on_grid(step: Step) -> bool:
    """Whether the network gets the nominal timestep of this step."""
    return step.interval.time == step.session.times[step.index]
