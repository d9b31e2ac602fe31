"""`EasyCache`: a skip rule that measures the network's rate of change while sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework import Compute, Decision, Evaluation, Needs, Policy, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.plugins import choose_unit
from erta_framework.session import Call
from erta_policies.shared import Accumulator, mean_magnitude, reuse_below


@dataclass(slots=True)
class RateState:
    """State of one branch of one request.

    Attributes:
        previous: Latents of the last step, `[B, C, ...]`.
        index: Index of that step.
        rates: Measured rate of each sample; None until two evaluations are known.
        changes: Predicted relative change of each sample, summed since it was computed.
        steps: Step at which each sample was last computed, when its rate was measured.
    """

    previous: Tensor | None = None
    index: int = -1
    rates: list[float | None] | None = None
    changes: Accumulator = field(default_factory=Accumulator)
    steps: tuple[int, ...] = ()


class EasyCache(Policy):
    """Reuses while the output is predicted to have changed by less than `threshold`.

    The rate is the change of the output over the change of the input, between the last two computed
    steps. It is taken as constant: rate times movement of the latents, over the size of the output,
    is the predicted relative change. These are summed since the last computed step. A reused output
    is core's own, of a flow `x + residual`, unless another one is listed. Needs no profile. On
    variance-exploding latents the rate is not constant, and the rule reuses far too much.

    Source: EasyCache, arXiv 2507.02860, and the repository H-EmbodVis/EasyCache (threshold 0.05 and
    10 warm-up steps for Wan 2.1, 0.025 and 5 for HunyuanVideo). There the conditional branch
    decides for the step; here the branch that is called first does. A decision for each sample of a
    batch is ours; for one sample it changes nothing.

    Attributes:
        threshold: tau, the predicted relative change at which the network runs again.
        warmup: Steps at the start that are always computed, an absolute number.
        tail: Steps at the end that are always computed.
        per_sample: Decide for each sample of a batch; else the means run over the whole batch, as
            in the published code, and the samples depend on each other.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> EasyCache(threshold=0.025, warmup=5)
        EasyCache(threshold=0.025, warmup=5, tail=1, per_sample=True)
    """

    threshold: float = 0.05
    warmup: int = 10
    tail: int = 1
    per_sample: bool = True

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise PolicyError(f"the threshold of EasyCache is {self.threshold}, it must be >= 0")
        if self.warmup < 1 or self.tail < 0:
            raise PolicyError(
                f"EasyCache has warmup {self.warmup} and tail {self.tail}; they must be at least "
                "1 and 0"
            )

    @property
    def traits(self) -> Traits:
        return Traits(memory=Needs(evaluations=2, pairs=True), decides=choose_unit(self.per_sample))

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        state = call.state_of(self, RateState)
        # a step that computed without asking left no latents to measure the movement from
        before = state.previous if state.index == step.index - 1 else None
        state.previous, state.index = call.x.clone(), step.index
        steps = call.history[0].steps(call.x.shape[0])
        count = len(steps) if self.per_sample else 1
        if step.index < self.warmup:
            return Compute("warm-up")
        if step.index >= step.num_steps - self.tail:
            return Compute("tail")
        if len(call.history) < 2 or before is None:
            return Compute("nothing measured yet")
        newest, older = call.history[:2]
        moved, size, rates = self._measured(call.x, before, newest, older)
        state.rates = update_rates(state.rates, rates, state.steps, steps, count)
        state.steps = steps
        changes = [predict_change(state.rates[k], moved[k], size[k]) for k in range(count)]
        sums = state.changes.add(step.index, steps, changes)
        return reuse_below(sums, self.threshold, f"predicted change {max(sums):.4f}")

    def _measured(
        self, x: Tensor, before: Tensor, newest: Evaluation, older: Evaluation
    ) -> tuple[list[float], list[float], list[float]]:
        """Movement since the last step, size of the newest output, and rate, all `[B]` or `[1]`.

        The four means are read back to the host at once.
        """
        given, output = newest.input, newest.output
        assert given is not None
        assert output is not None
        assert older.input is not None
        assert older.output is not None
        means = [
            mean_magnitude(change, self.per_sample)
            for change in (x - before, output, output - older.output, given - older.input)
        ]
        moved, size, change, path = torch.stack(means).tolist()
        rates = [a / b if b > 0.0 else math.nan for a, b in zip(change, path, strict=True)]
        return moved, size, rates


def update_rates(
    old: list[float | None] | None,
    measured: list[float],
    before: tuple[int, ...],
    now: tuple[int, ...],
    count: int,
) -> list[float | None]:
    """Take the measured rate of each sample that was computed since, if it is finite.

    Args:
        old: The rates so far; None before the first.
        measured: The newly measured rates.
        before: Step at which each sample was last computed when `old` was measured.
        now: The same today.
        count: Number of rates: samples, or 1 for the batch.
    """
    rates: list[float | None] = []
    for k in range(count):
        known = old[k] if old is not None else None
        computed = not before or before[k] != now[k]
        rates.append(measured[k] if computed and math.isfinite(measured[k]) else known)
    return rates


def predict_change(rate: float | None, moved: float, size: float) -> float:
    """Predicted relative change of the output in one step; infinite without a rate or output."""
    return rate * moved / size if rate is not None and size > 0.0 else math.inf
