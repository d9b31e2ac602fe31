"""Computed evaluations that policies declared they need, and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from erta_framework.session._evaluation import (
    INPUT,
    OUTPUT,
    RESIDUAL,
    Evaluation,
    Evaluations,
    Needs,
)
from erta_framework.session._selection import merge_rows
from erta_framework.session._site import Site
from erta_framework.session._step import Interval, Reused


@dataclass(slots=True)
class History:
    """Computed evaluations by site, newest first, as many as were declared.

    Attributes:
        needs: How many evaluations of a branch are kept, and whether with inputs and outputs.
        reused: Whether outputs are kept beside residuals, because core reuses those.
        kept: The evaluations.
        bytes: Memory held now.
    """

    needs: Needs
    reused: Reused = "residual"
    kept: dict[Site, Evaluations] = field(default_factory=dict)
    bytes: int = 0

    def usable(self, site: Site, x: Tensor) -> Evaluations:
        """The evaluations that fit `x`; a change of shape, dtype or device drops them."""
        kept = self.kept.get(site, ())
        if kept and RESIDUAL in kept[0].tensors and not is_same_kind(kept[0].residual, x):
            self.kept.pop(site)
            self.bytes -= sum(evaluation.nbytes for evaluation in kept)
            return ()
        return kept

    def record(self, site: Site, interval: Interval, tensors: Mapping[str, Tensor]) -> None:
        """Keep one computed evaluation, dropping the oldest.

        Args:
            site: Where it was computed.
            interval: The step.
            tensors: What is kept, by name; see `keep_residual`.
        """
        depth = self.needs.evaluations
        if depth == 0:
            return
        evaluation = Evaluation(interval.index, interval.start, interval.time, tensors)
        before = self.kept.get(site, ())
        self.kept[site] = (evaluation, *before)[:depth]
        self.bytes += evaluation.nbytes
        for old in before[depth - 1 :]:
            self.bytes -= old.nbytes

    def record_rows(
        self, site: Site, interval: Interval, tensors: Mapping[str, Tensor], rows: Sequence[int]
    ) -> None:
        """Keep the computed evaluation of some samples; the others keep theirs.

        Args:
            site: Where it was computed; an evaluation of the whole batch was recorded before.
            interval: The step.
            tensors: What is kept of these samples, `[R, ...]`.
            rows: Places of the samples in the batch.
        """
        before = self.kept[site]
        fresh = Evaluation(interval.index, interval.start, interval.time, tensors)
        batch = before[0].example.shape[0]
        self.kept[site] = merge_rows(before, fresh, rows, batch, self.needs.evaluations)
        self.bytes += sum(e.nbytes for e in self.kept[site]) - sum(e.nbytes for e in before)

    def keep_residual(self, x: Tensor, output: Tensor) -> dict[str, Tensor]:
        """What is kept of a network or a block stack: the residual, and what else is needed."""
        residual = output - x
        if not self.needs.pairs:
            kept = {RESIDUAL: residual}
            return kept if self.reused == "residual" else {**kept, OUTPUT: output.clone()}
        return {RESIDUAL: residual, INPUT: x.clone(), OUTPUT: output.clone()}

    def clear(self) -> None:
        """Forget everything."""
        self.kept.clear()
        self.bytes = 0


def is_same_kind(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and device."""
    return a.dtype is b.dtype and a.shape == b.shape and a.device == b.device
