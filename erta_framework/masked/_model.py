"""`TokenModel`: a masked language model as the loop sees it, and the rows that it runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

FIRST_LAYER = "first_layer"
"""Capability of models that can run their first layers on every position and the rest on some."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The positions of a sequence that the network runs on.

    Attributes:
        index: The positions, ascending, `[B, M]`.
        padding: Which of them only fill up a row of the batch that needs fewer, `[B, M]`; their
            keys and values are not kept. None where every row needs as many.
    """

    index: Tensor
    padding: Tensor | None = None

    @property
    def count(self) -> int:
        """Positions that the network runs on, those that fill up among them."""
        return self.index.numel()

    def gather(self, x: Tensor) -> Tensor:
        """The entries `[B, M, ...]` of `x` `[B, L, ...]` at these positions."""
        index = self.index.reshape(*self.index.shape, *[1] * (x.ndim - 2))
        return x.gather(1, index.expand(*self.index.shape, *x.shape[2:]))

    def scatter(self, target: Tensor, values: Tensor) -> Tensor:
        """`target` `[B, L, ...]` with `values` `[B, M, ...]` written at these positions.

        It is written in place. What fills up is left out.
        """
        if self.padding is not None:
            kept = self.gather(target)
            hidden = self.padding.reshape(*self.padding.shape, *[1] * (values.ndim - 2))
            values = torch.where(hidden, kept, values)
        index = self.index.reshape(*self.index.shape, *[1] * (values.ndim - 2))
        return target.scatter_(1, index.expand_as(values), values)

    def as_mask(self, length: int) -> Tensor:
        """Where the network runs, `[B, length]` booleans, without what fills up."""
        found = torch.zeros(self.index.shape[0], length, dtype=torch.bool, device=self.index.device)
        return self.scatter(found, torch.ones_like(self.index, dtype=torch.bool))


def select_rows(wanted: Tensor) -> Rows | None:
    """The rows for the positions that must run, `[B, L]` booleans; None where all must.

    Rows of the batch that need fewer are filled up with positions that need not run, so that
    every tensor stays rectangular. What fills up is computed for nothing: it keeps its old keys
    and values, so that a sample does not depend on its neighbours.
    """
    counts = wanted.sum(1)
    fewest, most = torch.stack(counts.aminmax()).tolist()
    if fewest == wanted.shape[1]:
        return None
    # a stable sort of false before true: first what must run, in ascending order
    order = (~wanted).int().sort(dim=1, stable=True).indices[:, : max(1, most)]
    place = torch.arange(order.shape[1], device=wanted.device)
    padding = None if fewest == max(1, most) else place >= counts[:, None]
    if padding is None:
        return Rows(order)
    ascending = order.sort(1)
    return Rows(ascending.values, padding.gather(1, ascending.indices))


class TokenStore(Protocol):
    """What a model keeps of one guidance branch during one request."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def attention(self) -> Tensor:
        """How much each position attends to each, through all layers, `[B, L, L]`.

        Only where the model offers `"signal:attention"` and the store was opened for it.
        """
        ...


class TokenModel(Protocol):
    """A masked language model: it predicts every token from those that are not masked."""

    @property
    def mask_id(self) -> int:
        """The token that stands for a masked position."""
        ...

    @property
    def layers(self) -> int:
        """Number of layers, for the share of the work in a call."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What it offers beside logits: `FIRST_LAYER`, or signals such as `signal:attention`."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Facts that identify the network."""
        ...

    def open(self, *, attention: bool = False) -> TokenStore:
        """A store for one branch of one request.

        Args:
            attention: Whether it must keep attention weights too.
        """
        ...

    def rows_for(self, wanted: Tensor) -> Tensor:
        """The rows that must run so that the tokens `wanted`, `[B, L]`, are predicted anew.

        They are the same, but in models whose row j predicts token j + 1.
        """
        ...

    def tokens_for(self, ran: Tensor) -> Tensor:
        """The tokens that the rows which `ran`, `[B, L]`, predict; the reverse of `rows_for`."""
        ...

    def run(
        self,
        ids: Tensor,
        *,
        seen: Tensor | None = None,
        store: TokenStore | None = None,
        rows: Rows | None = None,
        first_layer: int = 0,
    ) -> Tensor:
        """Logits of the rows, `[B, M, V]`.

        Args:
            ids: The whole sequence, `[B, L]`.
            seen: Which positions may be attended to, `[B, L]` booleans; None for all.
            store: Takes keys and values, and gives those of the other positions; None keeps none.
            rows: What to run on; None is every position.
            first_layer: Layers below it run on every position.
        """
        ...

    def place_logits(self, logits: Tensor, rows: Rows | None, length: int) -> Tensor:
        """Logits `[B, L, V]` by the token that they predict; zero where nothing ran."""
        ...

    def value_similarity(
        self, ids: Tensor, store: TokenStore, seen: Tensor | None
    ) -> tuple[Tensor, float]:
        """Cosine similarity of the values of an early layer to those held, `[B, L]`.

        And how many layers ran for it on every position.
        """
        ...


@runtime_checkable
class TextTokenModel(TokenModel, Protocol):
    """A `TokenModel` that reads prompts and writes texts, as a configuration names it."""

    def encode_prompts(
        self, prompts: Sequence[str], length: int | None = None
    ) -> tuple[Tensor, Tensor | None, int]:
        """Tokens to decode: `ids` `[N, L]`, `seen` `[N, L]` or None, and where the answer begins.

        They are what `MaskedSampler.sample` takes; see `pad_prompts`.

        Args:
            prompts: One a sample; an empty one gives nothing.
            length: Tokens of the answer; None for the model's own.

        Raises:
            InputError: A prompt cannot be read, or the length does not fit.
        """
        ...

    def spell(self, ids: Sequence[int]) -> str:
        """The text of one sample, from its tokens."""
        ...
