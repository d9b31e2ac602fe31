"""The rows of a batched call, by guidance branch."""

from __future__ import annotations

from dataclasses import dataclass

from erta_framework import Call, SessionInfo


@dataclass(frozen=True, slots=True)
class BranchRows:
    """The rows of two branches in one batched call.

    Attributes:
        batch: Rows of the call.
        cond: Places of the conditional rows.
        uncond: Places of the others, in the same order.
    """

    batch: int
    cond: range
    uncond: range

    @property
    def mask(self) -> tuple[bool, ...]:
        """Which rows are left out."""
        return tuple(row in self.uncond for row in range(self.batch))

    def locate(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """Where rows of the left out branch stand among its own."""
        return tuple(self.uncond.index(row) for row in rows)


def find_rows(session: SessionInfo, call: Call, cond: str, uncond: str) -> BranchRows | None:
    """The rows of two branches in a call, or in the call that it is a part of.

    None where each branch is a call of its own, or this call holds another batch, such as one half.
    """
    names, batch = session.row_branches, session.shape[0]
    if cond not in names or uncond not in names:
        return None
    if call.rows is None and call.x.shape[0] != batch:
        return None
    size = batch // len(names)
    cond_rows, uncond_rows = (
        range(size * names.index(name), size * (names.index(name) + 1)) for name in (cond, uncond)
    )
    return BranchRows(batch, cond_rows, uncond_rows)
