"""`WordsModel`: a trained network of this package as a model that the masked loop samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from erta_framework.errors import InputError
from erta_framework.masked import ATTENTION, FIRST_LAYER, SIMILARITY, Rows, TokenStore
from erta_framework.session import PREFIX
from erta_framework.text import show_value
from erta_integrations.language import KeyValueStore, compare_values, find_places, place_rows
from erta_integrations.words._files import find_weights, load_network
from erta_integrations.words._network import WordsNetwork
from erta_integrations.words._tasks import Permutations, Task, load_words


class WordsModel(nn.Module):
    """A network of this package and the task that it was trained on.

    Attributes:
        network: Predicts the symbols.
        task: What it was trained on.

    Example:
        >>> model = load_words_model()
        >>> model.make_ids(2).shape
        torch.Size([2, 16])
    """

    def __init__(self, network: WordsNetwork, task: Task, weights: str = "untrained") -> None:
        super().__init__()
        self.network, self.task, self._weights = network, task, weights

    @property
    def mask_id(self) -> int:
        """The symbol that stands for a masked position."""
        return self.task.mask_id

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.network.size.layers

    @property
    def capabilities(self) -> frozenset[str]:
        """All that a model can offer beside logits."""
        return frozenset({FIRST_LAYER, PREFIX + SIMILARITY, PREFIX + ATTENTION})

    def fingerprint(self) -> dict[str, str]:
        """Class of the network, hash of its sizes and hash of its weights file."""
        size = json.dumps(asdict(self.network.size), sort_keys=True)
        hashed = hashlib.sha256(size.encode()).hexdigest()[:16]
        return {"network": "WordsNetwork", "config": hashed, "weights": self._weights}

    def make_ids(self, count: int) -> Tensor:
        """Sequences to decode, `[count, L]`: the prompt, if there is one, and masks."""
        ids = torch.full((count, self.task.length), self.mask_id)
        start = self.task.prompt_length
        ids[:, :start] = self.task.draw(1, torch.Generator().manual_seed(0))[:, :start]
        return ids

    def encode_prompts(
        self, prompts: Sequence[str], length: int | None = None
    ) -> tuple[Tensor, Tensor | None, int]:
        """Sequences that begin as the prompts say, `[N, L]`, and where the answer begins.

        A prompt is text as `spell` writes it: dots are decoded, and so is what follows. It is a
        given part of the answer, so that a sample does not depend on the prompts beside it.

        Args:
            prompts: One a sample.
            length: The length of the task, or None.

        Raises:
            InputError: A prompt is no such text, too long, or leaves nothing to decode; or the
                length is another.
        """
        first, whole = self.task.prompt_length, self.task.length
        if length not in (None, whole):
            raise InputError(
                f"length is {length}, but {self.task.name!r} has {whole} symbols; leave it out"
            )
        ids = self.make_ids(len(prompts))
        for row, prompt in zip(ids, prompts, strict=True):
            symbols = self.task.read(prompt)
            if len(symbols) > whole - first:
                raise InputError(
                    f"the prompt {show_value(prompt)} has {len(symbols)} symbols, but "
                    f"{self.task.name!r} has {whole - first}; give at most as many"
                )
            row[first : first + len(symbols)] = torch.tensor(symbols, dtype=torch.long)
            if not bool((row == self.mask_id).any()):
                raise InputError(
                    f"the prompt {show_value(prompt)} leaves nothing to decode; write a dot for "
                    "each letter that is to be found"
                )
        return ids, None, first

    def spell(self, ids: Sequence[int]) -> str:
        """A sequence as text; masked positions are dots."""
        return self.task.spell(ids)

    def open(self, *, attention: bool = False) -> KeyValueStore:
        """A store for one branch of one request."""
        return KeyValueStore(attention=attention)

    def rows_for(self, wanted: Tensor) -> Tensor:
        """The same: row j predicts symbol j."""
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
        places = find_places(seen, ids)
        if store is None:
            found: Tensor = self.network(ids, places, seen)
            return found
        assert isinstance(store, KeyValueStore)
        store.begin(rows, ids.shape[1], first_layer)
        if rows is not None and first_layer == 0:
            ids, places = rows.gather(ids), rows.gather(places)
        narrowed: Tensor = self.network(ids, places, seen, store)
        return narrowed

    def place_logits(self, logits: Tensor, rows: Rows | None, length: int) -> Tensor:
        """Logits in their places, `[B, L, V]`."""
        return place_rows(logits, rows, length)

    def value_similarity(
        self, ids: Tensor, store: TokenStore, seen: Tensor | None
    ) -> tuple[Tensor, float]:
        """Cosine similarity of the values of the second layer to those held, `[B, L]`.

        The values of the first layer follow from the symbol alone.
        """
        assert isinstance(store, KeyValueStore)
        layer = min(1, self.layers - 1)
        fresh = self.network.find_values(ids, find_places(seen, ids), seen, layer)
        return compare_values(fresh, store.values(layer)), layer


def load_words_model() -> WordsModel:
    """The model trained on pairs of words, from the weights in the package."""
    network, hashed = load_network(find_weights("words"))
    return WordsModel(network, load_words(), hashed)


def load_permutations_model() -> WordsModel:
    """The model trained on permutations, from the weights in the package."""
    network, hashed = load_network(find_weights("permutations"))
    return WordsModel(network, Permutations(), hashed)
