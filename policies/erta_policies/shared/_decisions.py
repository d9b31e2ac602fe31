"""What skip rules decide with: sums of predicted changes, a threshold, and the first branch."""

from __future__ import annotations

from collections.abc import Sequence

from erta_framework import Call, Compute, Decision, Reuse, Step


class Accumulator:
    """Sums each sample's predicted changes since the network last ran on it.

    The step at which a sample was last computed is read from its history. So its sum starts again
    whatever made it compute: this rule, another one, a warm-up, or another sample of the batch.

    Attributes:
        sums: The newest sums, one a sample, or one for the whole batch.

    Example:
        >>> sums = Accumulator()
        >>> sums.add(5, (4,), [0.02]), sums.add(6, (4,), [0.02]), sums.add(7, (6,), [0.02])
        ([0.02], [0.04], [0.02])
    """

    __slots__ = ("_index", "sums")

    def __init__(self) -> None:
        self.sums: list[float] = []
        self._index = -1

    def add(self, index: int, computed: Sequence[int], changes: Sequence[float]) -> list[float]:
        """Add this step's changes.

        Args:
            index: This step.
            computed: Step at which each sample was last computed, `Evaluation.steps(batch)`.
            changes: Predicted change of each sample since the step before; one for a decision
                on the whole batch.

        Returns:
            The sums with this step's changes.
        """
        earlier = self.sums if len(self.sums) == len(changes) else [0.0] * len(changes)
        # computed at the last step that was added, or later: that change is made good
        self.sums = [
            change + (0.0 if computed[k] >= self._index else earlier[k])
            for k, change in enumerate(changes)
        ]
        self._index = index
        return self.sums


class FirstBranch:
    """Remembers which branch of each network was called first in the newest step.

    For rules in which that branch decides for all.

    Example:
        >>> FirstBranch().is_first(step, call)  # doctest: +SKIP
        True
    """

    __slots__ = ("_first",)

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, str]] = {}

    def is_first(self, step: Step, call: Call) -> bool:
        """Whether this call's branch is the first of its network in this step."""
        index, branch = self._first.get(call.model, (-1, ""))
        if index == step.index:
            return branch == call.branch
        self._first[call.model] = step.index, call.branch
        return True


def reuse_below(
    values: Sequence[float], threshold: float, reason: str, scope: str = "step"
) -> Decision:
    """Reuse the samples whose value is below the threshold, compute the others.

    Args:
        values: One a sample, `[B]`; or a single one that decides for the whole batch.
        threshold: The value at which the network runs.
        reason: A few words for the trace.
        scope: As in `Compute`.

    Example:
        >>> reuse_below([0.1, 0.9], 0.5, "change").mask
        (True, False)
    """
    mask = tuple(value < threshold for value in values)
    if all(mask):
        return Reuse(reason, scope)
    return Reuse(reason, scope, mask) if any(mask) else Compute(reason, scope)
