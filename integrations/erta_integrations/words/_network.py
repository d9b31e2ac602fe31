"""`WordsNetwork`: a small transformer that fills in masked symbols, attending both ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from erta_integrations.language import KeyValueStore

BASE = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Sizes of a network.

    Attributes:
        symbols: How many symbols there are, the mask among them.
        width: Features of a position.
        heads: Attention heads.
        layers: Transformer layers.
        places: Positions with a learned embedding; 0 for rotary embeddings alone, which know
            distances only.
    """

    symbols: int
    width: int = 64
    heads: int = 4
    layers: int = 3
    places: int = 0


class Attention(nn.Module):
    """Attention over all positions, with rotary position embeddings."""

    def __init__(self, size: Size, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = size.heads, layer
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)

    def forward(
        self, x: Tensor, rotation: Tensor, seen: Tensor | None, kept: KeyValueStore | None
    ) -> Tensor:
        """Attend from the given positions to all that `kept` holds.

        Args:
            x: Features of the positions, `[B, M, D]`.
            rotation: Complex rotations of these positions, `[B, 1, M, D / heads / 2]`.
            seen: Which keys may be attended to, `[B, 1, 1, L]`; None for all.
            kept: Keys and values of the positions that are left out; None if none is.
        """
        batch, count, width = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if kept is not None:
            k, v = kept.update(k, v, self.layer)
            kept.observe(q, k, self.layer, seen)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return found


class Layer(nn.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self, size: Size, layer: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.attention = Attention(size, layer)
        self.gate = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(2 * size.width, size.width, bias=False)

    def find_values(self, x: Tensor) -> Tensor:
        """The values of the features `[B, L, D]`, `[B, L, H, D / H]`."""
        qkv: Tensor = self.attention.qkv(self.norm1(x))
        return qkv.view(*x.shape[:2], 3, self.attention.heads, -1)[:, :, 2]

    def forward(
        self, x: Tensor, rotation: Tensor, seen: Tensor | None, kept: KeyValueStore | None
    ) -> Tensor:
        """The features `[B, M, D]` after this layer."""
        x = x + self.attention(self.norm1(x), rotation, seen, kept)
        left, right = self.gate(self.norm2(x)).chunk(2, -1)
        found: Tensor = x + self.down(functional.silu(left) * right)
        return found


class WordsNetwork(nn.Module):
    """Predicts every symbol of a sequence from those that are not masked.

    Example:
        >>> WordsNetwork(Size(symbols=27))(torch.zeros(2, 16, dtype=torch.long)).shape
        torch.Size([2, 16, 27])
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.symbols = nn.Embedding(size.symbols, size.width)
        self.layers = nn.ModuleList(Layer(size, layer) for layer in range(size.layers))
        self.norm = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.symbols, bias=False)
        nn.init.normal_(self.symbols.weight, std=0.02)
        self.places: nn.Embedding | None = None
        if size.places:
            self.places = nn.Embedding(size.places, size.width)
            nn.init.normal_(self.places.weight, std=0.02)

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.symbols(ids)
        return x if self.places is None else x + self.places(positions)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        seen: Tensor | None = None,
        kept: KeyValueStore | None = None,
    ) -> Tensor:
        """Logits `[B, M, V]` of the given positions.

        Args:
            ids: Symbols, `[B, M]`.
            positions: Where they stand in the sequence, `[B, M]`; None for `0..M-1`.
            seen: Which positions of the sequence may be attended to, `[B, L]` booleans; None for
                all.
            kept: Keys and values of the positions that are left out.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        rotation = find_rotations(positions, self.size.width // self.size.heads)
        keys = None if seen is None else seen[:, None, None, :]
        x = self._embed(ids, positions)
        for number, layer in enumerate(self.layers):
            if kept is not None and number == kept.first_layer > 0:
                x, rotation = narrow_rows(x, rotation, kept)
            x = layer(x, rotation, keys, kept)
        found: Tensor = self.head(self.norm(x))
        return found

    def find_values(
        self, ids: Tensor, positions: Tensor, seen: Tensor | None, layer: int
    ) -> Tensor:
        """The values of a layer, `[B, L, H, D]`; the layers below run on every position."""
        rotation = find_rotations(positions, self.size.width // self.size.heads)
        keys = None if seen is None else seen[:, None, None, :]
        x = self._embed(ids, positions)
        for below in self.layers[:layer]:
            x = below(x, rotation, keys, None)
        last = self.layers[layer]
        assert isinstance(last, Layer)
        return last.find_values(x)


def narrow_rows(x: Tensor, rotation: Tensor, kept: KeyValueStore) -> tuple[Tensor, Tensor]:
    """Features and rotations of the rows that the remaining layers run on."""
    rows = kept.rows_at(kept.first_layer)
    if rows is None:
        return x, rotation
    return rows.gather(x), rows.gather(rotation.transpose(1, 2)).transpose(1, 2)


def find_rotations(positions: Tensor, width: int) -> Tensor:
    """The rotary embedding of positions `[B, M]` as complex numbers, `[B, 1, M, width / 2]`."""
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None, :, None] * BASE ** (-steps / width)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys `[B, H, M, W]` turned by their positions."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
