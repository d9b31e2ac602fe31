"""Computed evaluations that policies declared they need, and their memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from erta_framework.session._records import Evaluation, Interval, Needs, Seam
from erta_framework.session._selection import merged

Key = tuple[str, str, Seam]
"""Network, branch, seam."""


@dataclass(slots=True)
class History:
    """Computed evaluations by (model, branch, seam), newest first, as many as were declared.

    Attributes:
        needs: How many evaluations of a branch are kept, and whether with inputs and outputs.
        kept: The evaluations.
        bytes: Memory held now.
    """

    needs: Needs
    kept: dict[Key, tuple[Evaluation, ...]] = field(default_factory=dict)
    bytes: int = 0

    def usable(self, key: Key, x: Tensor) -> tuple[Evaluation, ...]:
        """The evaluations that fit `x`; a change of shape, dtype or device drops them."""
        kept = self.kept.get(key, ())
        if kept and not same_kind(kept[0].residual, x):
            self.kept.pop(key)
            self.bytes -= sum(map(nbytes, kept))
            return ()
        return kept

    def record(self, key: Key, interval: Interval, x: Tensor, output: Tensor) -> None:
        """Keep one computed evaluation, dropping the oldest."""
        depth = self.needs.evaluations
        if depth == 0:
            return
        evaluation = self._evaluation(interval, x, output)
        before = self.kept.get(key, ())
        self.kept[key] = (evaluation, *before)[:depth]
        self.bytes += nbytes(evaluation) - sum(map(nbytes, before[depth - 1 :]))

    def record_rows(
        self, key: Key, interval: Interval, x: Tensor, output: Tensor, rows: Sequence[int]
    ) -> None:
        """Keep the computed evaluation of some samples; the others keep theirs.

        Args:
            key: Network, branch, seam; an evaluation of the whole batch was recorded before.
            interval: The step.
            x: What went in, `[R, C, ...]`.
            output: What came out, `[R, C, ...]`.
            rows: Places of the samples in the batch.
        """
        before = self.kept[key]
        fresh = self._evaluation(interval, x, output)
        batch = before[0].residual.shape[0]
        self.kept[key] = merged(before, fresh, rows, batch, self.needs.evaluations)
        self.bytes += sum(map(nbytes, self.kept[key])) - sum(map(nbytes, before))

    def _evaluation(self, interval: Interval, x: Tensor, output: Tensor) -> Evaluation:
        residual = output - x
        if not self.needs.pairs:
            return Evaluation(interval.index, interval.start, interval.time, residual)
        return Evaluation(
            interval.index, interval.start, interval.time, residual, x.clone(), output.clone()
        )

    def clear(self) -> None:
        """Forget everything."""
        self.kept.clear()
        self.bytes = 0


def nbytes(evaluation: Evaluation) -> int:
    """Memory of one evaluation."""
    size = evaluation.residual.nbytes
    if evaluation.input is not None:
        size += evaluation.input.nbytes
    if evaluation.output is not None:
        size += evaluation.output.nbytes
    return size


def same_kind(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and device."""
    return a.dtype is b.dtype and a.shape == b.shape and a.device == b.device
