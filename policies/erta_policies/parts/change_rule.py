"""`ChangeRule`: the base of skip rules that sum up a predicted change of the output."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from erta_framework import Call, Compute, Decision, Needs, Policy, Step, Traits, hookimpl
from erta_framework.session import AHEAD
from erta_policies.parts.changes import TIMES, Memory, Signal, read, required
from erta_policies.parts.decisions import below


class ChangeRule(Policy):
    """Base of skip rules that predict the output's change from that of a signal; core for the rest.

    The change of the signal from one step to the next, reused or not, is made a predicted change
    of the output; these are summed up since the last computed step, and a step is reused while the
    sum is below the threshold. A subclass says which signal, how it predicts, and where it stops.

    A signal of the timestep alone is known for all steps once the network has run for the first
    time in a request. Where the driver can tell it, nothing is measured and no value is read back
    after that; a step that leaves the nominal grid goes back to measuring.

    Source: the rule of TeaCache, arXiv 2411.19108, which PromptTea (arXiv 2507.06739) shares.
    """

    @property
    def watched(self) -> Signal:
        """The signal whose change is measured."""
        raise NotImplementedError(f"{type(self).__name__} does not say which signal it watches")

    @property
    def effective_threshold(self) -> float:
        """The predicted change at which the network runs again."""
        raise NotImplementedError(f"{type(self).__name__} does not say at which change it computes")

    if TYPE_CHECKING:
        per_sample: bool  # a setting of every subclass

    @property
    def apart(self) -> bool:
        """Whether every branch decides for itself."""
        raise NotImplementedError(f"{type(self).__name__} does not say which branch decides")

    def concerns(self, call: Call) -> bool:
        """Whether this rule decides about a call; others are passed on."""
        return True

    def observed(self, step: Step, call: Call) -> Tensor:
        """The signal of a call, `[B, ...]`."""
        return read(self.watched, call)

    def predicted(self, step: Step, differences: Sequence[float]) -> tuple[list[float], str]:
        """The output's predicted changes, and in words what makes them doubtful (or nothing).

        Args:
            step: The step.
            differences: Relative L1 change of the signal, one a sample or one for the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} does not predict")

    @property
    def traits(self) -> Traits:
        return Traits(
            requires=required(self.watched),
            reads_latents=self.watched == "latents",
            memory=Needs(evaluations=1),
            decides="sample" if self.per_sample else "branch" if self.apart else "step",
        )

    def _memory(self, step: Step, call: Call) -> Memory:
        if self.apart:
            return call.state_of(self, Memory)
        shared = step.session.state_of(self, dict[str, Memory])
        return shared.setdefault(call.model, Memory())

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision | None:
        if not self.concerns(call):
            return None
        scope = "branch" if self.apart else "step"
        memory, batch = self._memory(step, call), call.x.shape[0]
        differences = self._differences(memory, step, call)
        if not differences:
            return Compute("no signal of the step before", scope)
        changes, doubts = self.predicted(step, differences)
        sums = memory.changes.add(step.index, call.history[0].steps(batch), changes)
        reason = f"predicted change {max(sums):.4f}{doubts}"
        return below(sums, self.effective_threshold, reason, scope)

    def _differences(self, memory: Memory, step: Step, call: Call) -> list[float]:
        """Change of the signal into this step; nothing if it is not known."""
        if memory.ahead and on_grid(step):
            return memory.known(step.index)
        # moved off the grid: what was known beforehand is no longer so
        memory.ahead = []
        now = self.observed(step, call)
        alone = self.per_sample and now.shape[0] == call.x.shape[0]
        moved = memory.moved(step.index, now, alone)
        return [] if moved is None else moved.tolist()

    def _look_ahead(self, memory: Memory, step: Step, call: Call) -> None:
        """Where the signal follows from the step alone, know all of its changes at once."""
        name, memory.looked = self.watched + AHEAD, True
        if self.watched in TIMES and call.offers(name) and on_grid(step):
            signals = call.feature(name)
            if len(signals) == step.num_steps:
                alone = self.per_sample and signals.shape[1] == call.x.shape[0]
                memory.look_ahead(signals, alone)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        # the first step of a branch is computed without asking; the next compares with its signal
        if call.rows is None and self.concerns(call):
            memory = self._memory(step, call)
            if memory.index != step.index and memory.ahead and on_grid(step):
                memory.known(step.index)
            elif memory.index != step.index:
                memory.keep(step.index, self.observed(step, call))
                if not memory.looked:
                    self._look_ahead(memory, step, call)
        return (yield)


def on_grid(step: Step) -> bool:
    """Whether the network is told the nominal time of this step."""
    return step.interval.time == step.session.times[step.index]
