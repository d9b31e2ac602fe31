"""`KeyValueStore`: keys and values of every position and layer, of which each call writes some."""

from __future__ import annotations

import torch
from torch import Tensor

from erta_framework.errors import ProtocolError
from erta_framework.masked import Rows


class KeyValueStore:
    """Full-length keys and values of every layer; a call scatters its rows into them.

    Positions never move, so keys are kept as they come, rotated or not, and stay in the order of
    the positions: nothing is concatenated or reordered. It is the state of one guidance branch of
    one request.

    Args:
        attention: Whether attention weights are kept as well, `[B, L, L]` a layer.

    Example:
        >>> store = KeyValueStore()
        >>> store.begin(None, length=4)
        >>> key = torch.ones(1, 2, 4, 8)
        >>> store.update(key, key, 0)[0] is key
        True
    """

    def __init__(self, *, attention: bool = False) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._weights: dict[int, Tensor] = {}
        self._keeps_attention = attention
        self._rows: Rows | None = None
        self._flat: tuple[Tensor, Tensor | None] | None = None
        self._length = 0
        self.first_layer = 0

    def begin(self, rows: Rows | None, length: int, first_layer: int = 0) -> None:
        """Open a call.

        Args:
            rows: The positions that it runs on; None is every position.
            length: Length of the sequence, L.
            first_layer: Layers below it run on every position.
        """
        self._rows, self._length, self.first_layer = rows, length, first_layer
        self._flat = None
        if rows is not None:
            batch = len(rows.index)
            offsets = torch.arange(batch, device=rows.index.device)[:, None] * length
            padding = None if rows.padding is None else rows.padding.flatten()[:, None]
            self._flat = ((rows.index + offsets).flatten(), padding)

    def rows_at(self, layer: int) -> Rows | None:
        """The rows of the open call at a layer; None is every position."""
        return None if layer < self.first_layer else self._rows

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Take the keys and values of this call's rows; those of all positions.

        Args:
            key: `[B, H, M, D]`, after rotary embedding if there is one.
            value: `[B, H, M, D]`.
            layer: Index of the layer.

        Returns:
            Keys and values `[B, H, L, D]`. Where the call runs on every position they are the
            given tensors.

        Raises:
            ProtocolError: The call has another number of rows than was opened, or nothing is held
                of the other positions.
        """
        rows = self.rows_at(layer)
        count = self._length if rows is None else rows.index.shape[1]
        if key.shape[2] != count:
            raise ProtocolError(
                f"layer {layer} gave keys of {key.shape[2]} positions, the call runs on {count}; "
                "the network must keep every position that it is given"
            )
        if rows is None:
            self._keys[layer] = self._write(self._keys.get(layer), key)
            self._values[layer] = self._write(self._values.get(layer), value)
            return key, value
        if layer not in self._keys:
            raise ProtocolError(
                f"layer {layer} holds no keys of the positions that the call leaves out; run every "
                "position once before"
            )
        return (
            self._scatter(self._keys[layer], key),
            self._scatter(self._values[layer], value),
        )

    @staticmethod
    def _write(held: Tensor | None, fresh: Tensor) -> Tensor:
        """Buffers `[B, L, H, D]` that hold `fresh`; the old ones where they fit."""
        source = fresh.transpose(1, 2)
        if held is None or held.shape != source.shape or held.dtype != source.dtype:
            return source.clone(memory_format=torch.contiguous_format)
        return held.copy_(source)

    def _scatter(self, held: Tensor, fresh: Tensor) -> Tensor:
        assert self._flat is not None
        index, padding = self._flat
        lines = held.view(-1, held.shape[2] * held.shape[3])
        values = fresh.transpose(1, 2).reshape(len(index), -1)
        if padding is not None:
            values = torch.where(padding, lines.index_select(0, index), values)
        lines.index_copy_(0, index, values)
        return held.transpose(1, 2)

    def values(self, layer: int) -> Tensor:
        """The values of a layer, `[B, L, H, D]`."""
        return self._values[layer]

    @property
    def keeps_attention(self) -> bool:
        """Whether it was opened for attention weights."""
        return self._keeps_attention

    def record(self, layer: int, weights: Tensor) -> None:
        """Keep the attention weights of this call's rows, `[B, H, M, L]`, averaged over heads."""
        mean, rows = weights.mean(1), self.rows_at(layer)
        if rows is None:
            self._weights[layer] = mean
        else:
            rows.scatter(self._weights[layer], mean)

    def observe(self, query: Tensor, key: Tensor, layer: int, seen: Tensor | None) -> None:
        """Record the weights of `query` `[B, H, M, D]` on `key` `[B, H, L, D]`, if they are kept.

        Args:
            query: Of this call's rows.
            key: Of all positions.
            layer: Index of the layer.
            seen: Which keys may be attended to, broadcast to `[B, 1, 1, L]`; None for all.
        """
        if not self._keeps_attention:
            return
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        self.record(layer, scores.softmax(-1))

    def attention(self) -> Tensor:
        """Attention rollout `[B, L, L]`: the product over layers of `(A + 1) / 2`.

        Source: Abnar and Zuidema, arXiv 2005.00928.

        Raises:
            ProtocolError: No weights are kept.
        """
        if not self._weights:
            raise ProtocolError(
                "no attention weights are held; open the store with attention=True and run once"
            )
        total: Tensor | None = None
        for layer in sorted(self._weights):
            weights = self._weights[layer]
            eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
            mixed = (weights + eye) / 2
            total = mixed if total is None else mixed @ total
        assert total is not None
        return total

    @property
    def nbytes(self) -> int:
        """Memory held."""
        held = (self._keys, self._values, self._weights)
        return sum(tensor.nbytes for part in held for tensor in part.values())

    def clear(self) -> None:
        """Forget everything."""
        for part in (self._keys, self._values, self._weights):
            part.clear()
        self._rows = self._flat = None


def place_rows(logits: Tensor, rows: Rows | None, length: int) -> Tensor:
    """Logits `[B, M, V]` in their places, `[B, length, V]`; zero elsewhere."""
    if rows is None:
        return logits
    return rows.scatter(logits.new_zeros(len(logits), length, logits.shape[-1]), logits)


def compare_values(fresh: Tensor, held: Tensor) -> Tensor:
    """Cosine similarity of values `[B, L, H, D]` to those held, `[B, L]`."""
    return torch.cosine_similarity(fresh.flatten(2).float(), held.flatten(2).float(), dim=-1)
