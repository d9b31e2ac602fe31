"""`ChangeRule`: the base of skip rules that sum up a predicted change of the output."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from erta_framework import Call, Compute, Decision, Needs, Policy, Step, hookimpl
from erta_policies.parts.changes import Memory, Signal, read, required
from erta_policies.parts.decisions import below


class ChangeRule(Policy):
    """Base of skip rules that predict the output's change from that of a signal; core for the rest.

    The change of the signal from one step to the next, reused or not, is made a predicted change
    of the output; these are summed up since the last computed step, and a step is reused while the
    sum is below the threshold. A subclass says which signal, how it predicts, and where it stops.

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
    def requires(self) -> frozenset[str]:
        """The signal."""
        return required(self.watched)

    @property
    def reads_latents(self) -> bool:
        """Only where they are the signal."""
        return self.watched == "latents"

    def needs(self) -> Needs:
        return Needs(evaluations=1)

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
        memory, now = self._memory(step, call), self.observed(step, call)
        batch = call.x.shape[0]
        alone = self.per_sample and now.shape[0] == batch
        moved = memory.moved(step.index, now, alone)
        if moved is None:
            return Compute("no signal of the step before", scope)
        changes, doubts = self.predicted(step, moved.tolist())
        sums = memory.changes.add(step.index, call.history[0].steps(batch), changes)
        reason = f"predicted change {max(sums):.4f}{doubts}"
        return below(sums, self.effective_threshold, reason, scope)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        # the first step of a branch is computed without asking; the next compares with its signal
        if call.rows is None and self.concerns(call):
            memory = self._memory(step, call)
            if memory.index != step.index:
                memory.keep(step.index, self.observed(step, call))
        return (yield)
