"""`Cells`: what the places of one request keep, by network, branch and place, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from erta_framework.modules._forms import Form
from erta_framework.session import (
    Evaluation,
    Evaluations,
    History,
    Interval,
    Needs,
    Site,
    drop_partial,
    select_rows,
)

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

    A cell holds the newest kept outputs of one place in one branch of one network, as `Evaluation`s
    whose tensors are named by visit and position. Stamps say at which step each row was kept.
    """

    def __init__(self) -> None:
        self._histories: dict[int, History] = {}
        self._learned: dict[Site, Learned] = {}
        self._shapes: dict[tuple[str, str], Shape] = {}

    @property
    def bytes(self) -> int:
        """Memory held now."""
        return sum(history.bytes for history in self._histories.values())

    def fit(self, site: Site, shape: Shape) -> None:
        """Drop what a branch of a network keeps, if its latents have another shape now."""
        key = (site.model, site.branch)
        if self._shapes.get(key, shape) != shape:
            for history in self._histories.values():
                for own in [s for s in history.kept if (s.model, s.branch) == key]:
                    history.bytes -= sum(e.nbytes for e in history.kept.pop(own))
            for own in [s for s in self._learned if (s.model, s.branch) == key]:
                del self._learned[own]
        self._shapes[key] = shape

    def learned(self, site: Site) -> Learned:
        """What is known of a module; the path of the site is that of the module."""
        found = self._learned.get(site)
        if found is None:
            found = self._learned[site] = Learned()
        return found

    def kept(self, depth: int, site: Site, batch: int, rows: Sequence[int] | None) -> Evaluations:
        """What a place keeps of all samples, or of some, as far back as all of these have it.

        Args:
            depth: How many outputs its owner keeps.
            site: Network, branch and place.
            batch: Samples of the whole batch.
            rows: The samples; None for all.
        """
        history = self._histories.get(depth)
        held = () if history is None else history.kept.get(site, ())
        if not held or rows is None:
            return drop_partial(held)
        return select_rows(held, rows, batch)

    def keep(
        self,
        depth: int,
        site: Site,
        interval: Interval,
        tensors: Mapping[str, Tensor],
        batch: int,
        rows: Sequence[int] | None,
    ) -> None:
        """Keep an output of a place, of all samples or of some.

        Arguments as in `kept`, and:

        Args:
            depth: How many outputs its owner keeps.
            site: Network, branch and place.
            interval: The step.
            tensors: What is kept, by name.
            batch: Samples of the whole batch.
            rows: The samples; None for all.
        """
        history = self._histories.get(depth)
        if history is None:
            history = self._histories[depth] = History(Needs(evaluations=depth))
        held = history.kept.get(site)
        if held and held[0].tensors.keys() != tensors.keys():
            history.bytes -= sum(e.nbytes for e in history.kept.pop(site))
            held = None
        if rows is None:
            history.record(site, interval, tensors)
        elif held:
            history.record_rows(site, interval, tensors, rows)
        else:
            first = spread_rows(interval, tensors, batch, rows)
            history.kept[site] = (first,)
            history.bytes += first.nbytes

    def replace(self, depth: int, site: Site, tensors: Mapping[str, Tensor]) -> None:
        """Replace the newest kept tensors of a place; its stamps stay."""
        held = self._histories[depth].kept[site]
        self._histories[depth].kept[site] = (replace(held[0], tensors=tensors), *held[1:])

    def forget(self, depth: int, site: Site) -> None:
        """Forget what a place keeps."""
        history = self._histories.get(depth)
        if history is not None:
            history.bytes -= sum(e.nbytes for e in history.kept.pop(site, ()))

    def find_undivided(self, site: Site, batch: int) -> str:
        """The first place of a branch whose kept output has no row for each sample; else empty."""
        for history in self._histories.values():
            for own, held in history.kept.items():
                if (own.model, own.branch) != (site.model, site.branch):
                    continue
                if any(t.ndim == 0 or t.shape[0] != batch for t in held[0].tensors.values()):
                    return own.path
        return ""

    def clear(self) -> None:
        """Forget everything."""
        self._histories.clear()
        self._learned.clear()
        self._shapes.clear()


def spread_rows(
    interval: Interval, tensors: Mapping[str, Tensor], batch: int, rows: Sequence[int]
) -> Evaluation:
    """The first evaluation of a place, of which only some samples are known."""

    def spread(tensor: Tensor) -> Tensor:
        index = torch.tensor(rows, device=tensor.device)
        return tensor.new_zeros(batch, *tensor.shape[1:]).index_copy(0, index, tensor)

    known = set(rows)
    stamp = (interval.index, interval.start, interval.time)
    return Evaluation(
        interval.index,
        interval.start,
        interval.time,
        {name: spread(tensor) for name, tensor in tensors.items()},
        tuple(stamp if row in known else None for row in range(batch)),
    )


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


def is_written(tensor: Tensor, version: int | None) -> bool:
    """Whether somebody wrote into a tensor since this version."""
    return version is not None and tensor._version != version


def get_version(tensor: Tensor) -> int | None:
    """How often a tensor was written into; None where that is not counted."""
    return None if tensor.is_inference() else tensor._version
