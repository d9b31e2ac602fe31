"""Computed evaluations that policies declared they need, and their memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from erta_framework.records import Evaluation, Interval, Needs, Seam

Key = tuple[str, str, Seam]
"""Network, branch, seam."""


@dataclass(slots=True)
class History:
    """Computed evaluations by (model, branch, seam), newest first, as many as were declared."""

    needs: Needs
    kept: dict[Key, tuple[Evaluation, ...]] = field(default_factory=dict)

    def usable(self, key: Key, x: Tensor) -> tuple[Evaluation, ...]:
        """The evaluations that fit `x`; a change of shape, dtype or device drops them."""
        kept = self.kept.get(key, ())
        if kept and not same_kind(kept[0].residual, x):
            self.kept.pop(key)
            return ()
        return kept

    def record(self, key: Key, interval: Interval, x: Tensor, output: Tensor) -> None:
        """Keep one computed evaluation, dropping the oldest."""
        if self.needs.evaluations == 0:
            return
        evaluation = Evaluation(
            index=interval.index,
            sigma=interval.start,
            time=interval.time,
            residual=output - x,
            input=x.clone() if self.needs.pairs else None,
            output=output.clone() if self.needs.pairs else None,
        )
        self.kept[key] = (evaluation, *self.kept.get(key, ()))[: self.needs.evaluations]

    def bytes(self) -> int:
        """Memory held now."""
        tensors = (
            tensor
            for kept in self.kept.values()
            for evaluation in kept
            for tensor in (evaluation.residual, evaluation.input, evaluation.output)
        )
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def same_kind(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and device."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
