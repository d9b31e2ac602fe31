"""`TokenCall`: one call of a masked language model, as sessions and policies see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError
from erta_framework.masked._model import Rows, TokenModel, TokenStore, select_rows
from erta_framework.masked._positions import Held
from erta_framework.session import PREFIX, Session, Site

AGE = "age"
KEPT_LOGITS = "kept_logits"
"""Capability: a position that does not run keeps its logits, and may be decoded from them."""
SIMILARITY, ATTENTION = "value_similarity", "attention"


class Tracker(Protocol):
    """What a driver knows of every position, by name, for the rules that ask."""

    @property
    def index(self) -> int:
        """The step that is open."""
        ...

    @property
    def finished(self) -> Tensor | None:
        """Samples that are done and need not run, `[B]`; None if the driver cannot tell."""
        ...

    @property
    def offers(self) -> frozenset[str]:
        """Names of the signals."""
        ...

    def signal(self, name: str) -> Tensor:
        """One of them, `[B, L]`, or `[B]` for a number a sample."""
        ...


@dataclass(slots=True, eq=False)
class Branch:
    """What a guidance branch holds during one request.

    Attributes:
        store: Its keys and values; None where no policy reuses any.
        held: Which positions they are of.
        fresh: Where the newest logits are of this step, `[B, L]`; None where all may be decoded.
        keeps_logits: Whether a position that did not run keeps its logits, and may be decoded.
        logits: Those, `[B, L, V]`.
    """

    store: TokenStore | None
    held: Held
    fresh: Tensor | None = None
    keeps_logits: bool = False
    logits: Tensor | None = None

    def clear(self) -> None:
        """Forget everything that was kept."""
        self.logits = None
        if self.store is not None:
            self.store.clear()


@dataclass(slots=True, eq=False)
class TokenCall:
    """One network call on tokens; offers what `TokenNetwork` describes.

    Attributes:
        model: The network.
        ids: What it is given, `[B, L]`: in the unconditional branch the prompt is masked.
        seen: Which positions may be attended to; None for all.
        branch: What the branch holds.
        tracker: What is known of every position.
        session: The request; its trace counts tokens where the network runs.
        site: Network and branch.
        copies: How often the batch is repeated in `ids`.
        undivided: Why no part of the batch runs alone.
    """

    model: TokenModel
    ids: Tensor
    seen: Tensor | None
    branch: Branch
    tracker: Tracker
    session: Session
    site: Site
    copies: int = 1
    undivided: str = "keys and values are held for the whole batch"
    _ahead: float = field(default=0.0, init=False)  # part of the layers that ran for signals

    def run(self) -> Tensor:
        """Logits `[B, L, V]` from a run on every position."""
        return self._run(None, 0)

    def run_reusing(self, positions: Tensor, first_layer: int) -> Tensor:
        """Logits `[B, L, V]` from a run on the positions that are not reused.

        A position whose keys and values are not held, or are of another token, runs as well. Where
        nothing ran the logits are zero.
        """
        if positions.dtype != torch.bool or positions.shape != self.ids.shape:
            raise CapabilityError(
                f"the positions to reuse are {tuple(positions.shape)} {positions.dtype}, the "
                f"tokens {tuple(self.ids.shape)}; give one boolean a token, [B, L]"
            )
        usable = self.branch.held.find_usable(self.ids, self.model.mask_id)
        wanted = self.model.rows_for(~positions) | ~usable
        finished = self.tracker.finished
        if finished is not None:
            wanted = wanted & ~torch.cat([finished] * self.copies)[:, None]
        return self._run(select_rows(wanted), first_layer)

    def _run(self, rows: Rows | None, first_layer: int) -> Tensor:
        batch, length = self.ids.shape
        logits = self.model.run(
            self.ids,
            seen=self.seen,
            store=self.branch.store,
            rows=rows,
            first_layer=first_layer,
        )
        total = batch * length
        count = total if rows is None else rows.count
        where = None if rows is None else rows.as_mask(length)
        self._count(count, total, first_layer)
        self.branch.held.record(self.ids, where, self.tracker.index)
        placed = self.model.place_logits(logits, rows, length)
        fresh = None if where is None else self.model.tokens_for(where)
        self.branch.fresh = fresh
        if self.branch.keeps_logits:
            if fresh is not None and self.branch.logits is not None:
                placed = torch.where(fresh[..., None], placed, self.branch.logits)
            self.branch.logits, self.branch.fresh = placed, None
        return placed

    def _count(self, count: int, total: int, first_layer: int) -> None:
        trace, below = self.session.trace, first_layer / self.model.layers
        trace.token_rows += count
        trace.token_total += total
        share = self._ahead + (1.0 if count == total else below + (1.0 - below) * count / total)
        self.session.note_work(self.site, share, len(self.ids))
        if self.branch.store is not None:
            trace.driver_bytes = max(trace.driver_bytes, self.branch.store.nbytes)

    def run_rows(self, rows: Tensor) -> Tensor:
        """Refused: keys and values are held for the whole batch."""
        raise CapabilityError(f"no part of the batch can run: {self.undivided}")

    def run_at(self, x: Tensor, timestep: float | None) -> Tensor:
        """Refused: a masked language model has no trials."""
        raise CapabilityError("no trial: a masked language model runs on its own tokens only")

    def offers(self, name: str) -> bool:
        """Whether there is a signal of this name."""
        return PREFIX + name in list_signals(self.model, self.tracker.offers)

    def signal(self, name: str) -> Tensor:
        """What the loop tracks of every position, or what the model offers.

        Raises:
            KeyError: There is no such signal.
        """
        if name == SIMILARITY and self.branch.store is not None:
            similarity, layers = self.model.value_similarity(self.ids, self.branch.store, self.seen)
            self._ahead += layers / self.model.layers
            return similarity
        if name == ATTENTION and self.branch.store is not None:
            return self.branch.store.attention()
        if name == AGE:
            return self.branch.held.age(self.tracker.index)
        if name not in self.tracker.offers:
            raise KeyError(name)
        return torch.cat([self.tracker.signal(name)] * self.copies)

    def keep(self, x: Tensor, output: Tensor) -> Mapping[str, Any]:
        """Nothing but the step at which the network ran: tokens have no residual."""
        return {}


def list_signals(model: TokenModel, tracked: frozenset[str]) -> frozenset[str]:
    """What a driver offers: the signals that it tracks, and what the model offers."""
    names = {PREFIX + name for name in (AGE, *tracked)} | {KEPT_LOGITS}
    return frozenset(names) | model.capabilities
