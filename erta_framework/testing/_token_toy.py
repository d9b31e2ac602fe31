"""`TokenToy`: a masked model of two attention layers with random weights, for rules on tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from erta_framework.masked import (
    ATTENTION,
    FIRST_LAYER,
    SIMILARITY,
    Decoder,
    MaskedLoop,
    MaskedRequest,
    MaskedResult,
    MaskedSchedule,
    Rows,
    TokenStore,
)
from erta_framework.plugins import Engine
from erta_framework.session import PREFIX

SYMBOLS, WIDTH, LAYERS, PROMPT, ANSWER = 12, 16, 2, 3, 8


@dataclass(slots=True, eq=False)
class ToyStore:
    """Keys, values and attention weights of every position, layer by layer."""

    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def put(self, name: str, layer: int, fresh: Tensor, rows: Rows | None) -> Tensor:
        """Take what the rows of a call gave, `[B, M, ...]`; what is held of all, `[B, L, ...]`."""
        if rows is None:
            self.kept[name, layer] = fresh.clone()
            return fresh
        return rows.scatter(self.kept[name, layer], fresh)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in self.kept.values())

    def clear(self) -> None:
        """Forget everything."""
        self.kept.clear()

    def attention(self) -> Tensor:
        """The product of the layers' weights, `[B, L, L]`."""
        product: Tensor = self.kept["weights", 1] @ self.kept["weights", 0]
        return product


class TokenToy:
    """A masked model that counts the positions that it runs on.

    Attributes:
        rows: Positions that it ran on.
        stores: Every store that was opened.
    """

    mask_id = SYMBOLS - 1
    layers = LAYERS
    capabilities = frozenset({FIRST_LAYER, PREFIX + ATTENTION, PREFIX + SIMILARITY})

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int) -> Tensor:
            drawn: Tensor = torch.randn(*shape, generator=generator) * (2 * shape[-1] ** -0.5)
            return drawn

        self._symbols = draw(SYMBOLS, WIDTH) * 2
        self._places = draw(64, WIDTH)
        self._projections = draw(LAYERS, 4, WIDTH, WIDTH)
        self.rows = 0
        self.stores: list[ToyStore] = []

    def fingerprint(self) -> dict[str, str]:
        """The name alone."""
        return {"network": "TokenToy"}

    def open(self, *, attention: bool = False) -> ToyStore:
        """A store; it holds attention weights anyway."""
        self.stores.append(ToyStore())
        return self.stores[-1]

    def rows_for(self, wanted: Tensor) -> Tensor:
        """The same."""
        return wanted

    def tokens_for(self, ran: Tensor) -> Tensor:
        """The same."""
        return ran

    def run(
        self,
        ids: Tensor,
        *,
        seen: Tensor | None = None,
        store: TokenStore | None = None,
        rows: Rows | None = None,
        first_layer: int = 0,
    ) -> Tensor:
        """Logits of the rows, `[B, M, V]`."""
        self.rows += ids.numel() if rows is None else rows.count
        held = store if isinstance(store, ToyStore) else ToyStore()
        x = self._embed(ids)
        for layer in range(LAYERS):
            here = rows if layer >= first_layer else None
            if here is not None and x.shape[1] == ids.shape[1]:
                x = here.gather(x)
            q, k, v, out = self._projections[layer]
            key = held.put("key", layer, x @ k, here)
            value = held.put("value", layer, x @ v, here)
            weights = (x @ q @ key.transpose(1, 2) * WIDTH**-0.5).softmax(-1)
            held.put("weights", layer, weights, here)
            x = functional.layer_norm(x + weights @ value @ out, (WIDTH,))
        return x @ self._symbols.T

    def _embed(self, ids: Tensor) -> Tensor:
        return self._symbols[ids] + self._places[: ids.shape[1]]

    def place_logits(self, logits: Tensor, rows: Rows | None, length: int) -> Tensor:
        """Logits in their places, `[B, L, V]`."""
        if rows is None:
            return logits
        return rows.scatter(logits.new_zeros(len(logits), length, SYMBOLS), logits)

    def value_similarity(
        self, ids: Tensor, store: TokenStore, seen: Tensor | None
    ) -> tuple[Tensor, float]:
        """Cosine similarity of the values of the first layer to those held, `[B, L]`."""
        assert isinstance(store, ToyStore)
        fresh = self._embed(ids) @ self._projections[0, 2]
        return torch.cosine_similarity(fresh, store.kept["value", 0], dim=-1), 0.0


def run_token_toy(
    engine: Engine, *, seeds: tuple[int, ...] = (0, 1), toy: TokenToy | None = None
) -> MaskedResult:
    """Decode the toy in blocks of four, in a random order that is known.

    Args:
        engine: The policies.
        seeds: One a sample; a sample follows from its seed alone.
        toy: The model; a new one by default.
    """
    model = TokenToy() if toy is None else toy
    ids = torch.full((len(seeds), PROMPT + ANSWER), model.mask_id)
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        ids[row, :PROMPT] = torch.randint(model.mask_id, (PROMPT,), generator=generator)
    loop = MaskedLoop(engine, MaskedSchedule(block=4), Decoder(order="random", temperature=1.0))
    return loop.run(model, MaskedRequest(ids=ids, start=PROMPT, seeds=seeds, request_id="toy"))
