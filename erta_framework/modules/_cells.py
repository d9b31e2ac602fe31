"""`Cells`: what the places of one request keep, by network, branch and place."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework.modules._cell import Cell, Changes
from erta_framework.modules._forms import Form
from erta_framework.session import Site

FEATURE = "feature"
"""What is kept where a policy keeps tensors of its own."""


@dataclass(slots=True)
class Learned:
    """What was learned of one module in one branch, from the calls in which it ran.

    Attributes:
        forms: The form of its output, for each visit of a network call.
        streams: The input that each tensor of its output continues, where that was needed.
        copies: Whether the network writes into its output, so that copies are kept and handed out.
    """

    forms: list[Form] = field(default_factory=list)
    streams: tuple[str, ...] | None = None
    copies: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What cells are valid for: latents of this batch, shape, type and device."""

    batch: int
    rest: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor, batch: int) -> Shape:
        """Of latents that are part of a batch of this size, or all of it."""
        return cls(batch, x.shape[1:], x.dtype, x.device)


class Cells:
    """What the places keep, and what was learned of the modules; dropped with the request.

    Attributes:
        changes: Counts when a cell came to keep something of another kind, or nothing.
    """

    def __init__(self) -> None:
        self.changes = Changes()
        self._cells: dict[tuple[int, Site], Cell] = {}
        self._learned: dict[Site, Learned] = {}
        self._shapes: dict[tuple[str, str], Shape] = {}

    @property
    def bytes(self) -> int:
        """Memory held now."""
        return sum([cell.nbytes for cell in self._cells.values()])

    def fit(self, site: Site, shape: Shape) -> None:
        """Drop what a branch of a network keeps, if its latents have another shape now."""
        key = (site.model, site.branch)
        if self._shapes.get(key, shape) != shape:
            for (_, own), cell in self._cells.items():
                if (own.model, own.branch) == key:
                    cell.forget()
            for own in [s for s in self._learned if (s.model, s.branch) == key]:
                del self._learned[own]
        self._shapes[key] = shape

    def learned(self, site: Site) -> Learned:
        """What is known of a module; the path of the site is that of the module."""
        found = self._learned.get(site)
        if found is None:
            found = self._learned[site] = Learned()
        return found

    def cell(self, depth: int, site: Site) -> Cell:
        """What a place keeps.

        Args:
            depth: How many outputs its owner keeps.
            site: Network, branch and place.
        """
        found = self._cells.get((depth, site))
        if found is None:
            found = self._cells[depth, site] = Cell(depth, self.changes)
        return found

    def find_undivided(self, site: Site, batch: int) -> str:
        """The first place of a branch whose kept output has no row for each sample; else empty."""
        for (_, own), cell in self._cells.items():
            if (own.model, own.branch) != (site.model, site.branch) or not cell.held:
                continue
            tensors = cell.held[0].tensors.values()
            if any(t.ndim == 0 or t.shape[0] != batch for t in tensors):
                return own.path
        return ""

    def copy(self) -> Cells:
        """Cells that keep the same tensors now, for a call of which nothing is to be kept."""
        twin = Cells()
        twin._cells = {key: cell.copy(twin.changes) for key, cell in self._cells.items()}
        twin._learned, twin._shapes = dict(self._learned), dict(self._shapes)
        return twin

    def clear(self) -> None:
        """Forget everything."""
        for cell in self._cells.values():
            cell.forget()
        self._cells.clear()
        self._learned.clear()
        self._shapes.clear()
