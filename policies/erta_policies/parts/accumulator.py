"""A sum of predicted changes for each sample since the network ran on it."""

from __future__ import annotations

from collections.abc import Sequence


class Accumulator:
    """Adds up the predicted change of every step that was not computed.

    When a sample was computed is read from its history, never counted: whatever made it compute,
    be it this rule, another one, a warm-up or another sample of the batch, its sum starts anew.

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
        """The sums including this step's change.

        Args:
            index: This step.
            computed: Step at which each sample was last computed, `Evaluation.steps(batch)`.
            changes: Predicted change of each sample since the step before; one for a decision
                on the whole batch.
        """
        earlier = self.sums if len(self.sums) == len(changes) else [0.0] * len(changes)
        self.sums = [
            change + (0.0 if computed[k] >= self._index else earlier[k])
            for k, change in enumerate(changes)
        ]
        self._index = index
        return self.sums
