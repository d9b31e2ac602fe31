"""`Cell`: what one place keeps in one branch of one network, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from erta_framework.session import (
    Evaluation,
    Evaluations,
    Stamp,
    drop_partial,
    merge_rows,
    select_rows,
)

INPUT = "input"
"""What an input is called that is kept beside an output."""


class Changes:
    """Counts when cells came to keep something of another kind, or nothing: plans are stale then.

    Attributes:
        number: How often.
    """

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Cell:
    """The newest kept outputs of one place, as `Evaluation`s whose tensors are named by visit.

    Stamps say at which step each row was kept. An output of all samples, where one is kept, is not
    made an `Evaluation` before somebody asks: most are only handed out.

    Args:
        depth: How many outputs are kept.
        changes: Counts changes of kind, for all cells of a request.

    Attributes:
        stamp: Step, sigma and timestep of what is kept, where that is one output of all samples
            at once; else None.
        nbytes: Memory held now.
    """

    __slots__ = ("_changes", "_fresh", "_held", "_input", "_of", "depth", "nbytes", "stamp")

    def __init__(self, depth: int, changes: Changes) -> None:
        self.depth, self._changes = depth, changes
        self._held: Evaluations = ()
        self._fresh: Sequence[Sequence[Tensor]] = ()
        self._input: Sequence[Tensor] = ()
        self._of = ""
        self.stamp: Stamp | None = None
        self.nbytes = 0

    @property
    def held(self) -> Evaluations:
        """Everything that is kept, newest first, also what only some samples have."""
        if self._fresh and self.stamp is not None:
            named = name_tensors(self._of, self._fresh) | name_tensors(INPUT, [self._input])
            self._fresh, self._input = (), ()
            self._held = (Evaluation(*self.stamp, named),)
        return self._held

    @property
    def newest(self) -> Tensor:
        """The first tensor that was kept last."""
        return self._fresh[0][0] if self._fresh else self._held[0].example

    @property
    def is_output(self) -> bool:
        """Whether what is kept is one output, of all samples at once."""
        return self.stamp is not None and self._of == "output"

    def kept(self, batch: int, rows: Sequence[int] | None) -> Evaluations:
        """What is kept of all samples, or of some, as far back as all of these have it.

        Args:
            batch: Samples of the whole batch.
            rows: The samples; None for all.
        """
        held = self.held
        if not held or rows is None:
            return drop_partial(held)
        return select_rows(held, rows, batch)

    def keep(
        self,
        stamp: Stamp,
        of: str,
        visits: Sequence[Sequence[Tensor]],
        batch: int,
        rows: Sequence[int] | None,
        before: Sequence[Tensor] = (),
    ) -> None:
        """Keep an output of a place, of all samples or of some.

        Args:
            stamp: Step, sigma and timestep.
            of: What it is, such as `output`.
            visits: The tensors of each visit of the network call.
            batch: Samples of the whole batch.
            rows: The samples; None for all.
            before: Inputs that are kept beside it.
        """
        if rows is None and self.depth == 1 and visits[0]:
            if self.stamp is None or of != self._of:
                self._changes.number += 1
            self.stamp, self._of, self._fresh, self._held = stamp, of, visits, ()
            self._input = before
            nbytes = 0
            for tensors in (*visits, before):
                for tensor in tensors:
                    nbytes += tensor.nbytes
            self.nbytes = nbytes
            return
        named = name_tensors(of, visits) | name_tensors(INPUT, [before])
        held, fresh = self.held, Evaluation(*stamp, named)
        if rows is not None or not held or held[0].tensors.keys() != fresh.tensors.keys():
            self._changes.number += 1
        if held and held[0].tensors.keys() != fresh.tensors.keys():
            held = ()
        if rows is None:
            self._hold((fresh, *held)[: self.depth])
        elif held:
            size = held[0].example.shape[0]
            self._hold(merge_rows(held, fresh, rows, size, self.depth))
        else:
            self._hold((spread_rows(fresh, batch, rows),))

    def replace(
        self, of: str, visits: Sequence[Sequence[Tensor]], rows: Sequence[int] | None
    ) -> None:
        """Replace the newest kept tensors, of all samples or of some; their stamps stay.

        Args:
            of: What they are, such as `output`.
            visits: The tensors of each visit of the network call.
            rows: The samples; None for all.
        """
        newest, *before = self.held
        made = name_tensors(of, visits)
        if rows is not None:
            index = torch.tensor(rows, device=newest.example.device)
            made = {
                name: newest.tensors[name].index_copy(0, index, tensor)
                for name, tensor in made.items()
            }
        self._held = (replace(newest, tensors=made), *before)

    def copy(self, changes: Changes) -> Cell:
        """Another cell that keeps the same tensors; what it comes to keep is its own.

        Args:
            changes: Counts its changes of kind.
        """
        twin = Cell(self.depth, changes)
        for name in set(Cell.__slots__) - {"_changes", "depth"}:
            setattr(twin, name, getattr(self, name))
        return twin

    def forget(self) -> None:
        """Forget what is kept."""
        self._changes.number += 1
        self._hold(())

    def _hold(self, held: Evaluations) -> None:
        self._held, self._fresh, self._input, self.stamp = held, (), (), None
        self.nbytes = sum(evaluation.nbytes for evaluation in held)


def spread_rows(fresh: Evaluation, batch: int, rows: Sequence[int]) -> Evaluation:
    """The first evaluation of a place, of which only some samples are known."""

    def spread(_: str, tensor: Tensor) -> Tensor:
        index = torch.tensor(rows, device=tensor.device)
        return tensor.new_zeros(batch, *tensor.shape[1:]).index_copy(0, index, tensor)

    known, whole = set(rows), fresh.map_tensors(spread)
    stamp = (fresh.index, fresh.sigma, fresh.time)
    stamps = tuple(stamp if row in known else None for row in range(batch))
    return Evaluation(*stamp, whole.tensors, stamps)


def name_tensors(of: str, visits: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """The tensors of every visit of a call by name, such as `output.0.1`."""
    return {
        f"{of}.{visit}.{place}": tensor
        for visit, tensors in enumerate(visits)
        for place, tensor in enumerate(tensors)
    }


def read_tensors(evaluation: Evaluation, of: str, visit: int) -> list[Tensor]:
    """The tensors of one visit, in order; empty if there are none."""
    found: list[Tensor] = []
    while (name := f"{of}.{visit}.{len(found)}") in evaluation.tensors:
        found.append(evaluation.tensors[name])
    return found
