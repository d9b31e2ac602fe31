"""`LLaDAModel`: attention of LLaDA's first kind, through a patch of the instance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_framework.masked import Rows, TokenStore
from erta_integrations.language._hugging_face import HuggingFaceModel, Shift
from erta_integrations.language._padding import find_places
from erta_integrations.language._store import KeyValueStore

PARTS = ("rotary_emb", "attn_out", "_scaled_dot_product_attention", "config")


class LLaDAModel(HuggingFaceModel):
    """A model whose blocks have attention as a method that takes no cache and no positions.

    In `modeling_llada.py`, `block.attention(q, k, v, ...)` views keys with the length of the
    queries and rotates both by their place in the call. While a call runs on part of the positions,
    that method is replaced on each block, and put back after it, also after an exception.

    Args:
        model: The model, in evaluation mode; it takes `input_ids` and returns `logits`.
        mask_id: The mask; 126336 in LLaDA-8B.
        shift: As in `HuggingFaceModel`; LLaDA has none.

    Raises:
        CapabilityError: No block has such attention.

    Example:
        >>> model = LLaDAModel(network, mask_id=126336)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, mask_id: int, shift: Shift | None = None) -> None:
        super().__init__(model, mask_id, shift)
        self._blocks = find_blocks(model)

    @property
    def capabilities(self) -> frozenset[str]:
        """Nothing beside logits."""
        return frozenset()

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

        Raises:
            CapabilityError: The first layers are to run on every position.
        """
        if first_layer:
            raise CapabilityError(
                f"{type(self.model).__name__} cannot run its first {first_layer} layers on every "
                'position; a policy that asks for it requires "first_layer" in its traits'
            )
        if store is None and seen is None:
            plain: Tensor = self.model(input_ids=ids).logits
            return plain
        kept = store if isinstance(store, KeyValueStore) else None
        length, places = ids.shape[1], find_places(seen, ids)
        if kept is not None:
            kept.begin(rows, length)
        if rows is not None:
            ids, places = rows.gather(ids), rows.gather(places)
        mask = None if seen is None else seen[:, None, None, :]
        with replace_attention(self._blocks, places, length, kept, mask):
            found: Tensor = self.model(input_ids=ids).logits
        return found


def find_blocks(model: nn.Module) -> list[Any]:
    """The blocks with attention as a method, in order.

    Raises:
        CapabilityError: There is none.
    """
    found: list[Any] = [
        module
        for module in model.modules()
        if callable(getattr(module, "attention", None))
        and all(hasattr(module, name) for name in PARTS)
    ]
    if not found:
        raise CapabilityError(
            f"{type(model).__name__} has no block with attention(q, k, v) and "
            f"{', '.join(PARTS)}; LLaDAModel serves modeling_llada.py and its copies"
        )
    return found


@contextmanager
def replace_attention(
    blocks: list[Any],
    places: Tensor,
    length: int,
    store: KeyValueStore | None,
    mask: Tensor | None,
) -> Iterator[None]:
    """While it is open, attention of these blocks runs at given places and reads a store.

    Args:
        blocks: The blocks, in order.
        places: Place of every row of the call, `[B, M]`.
        length: Length of the sequence.
        store: Keys and values of the other positions; None if none is left out.
        mask: Which keys may be attended to, `[B, 1, 1, L]`; None for all.

    Raises:
        CapabilityError: Something else has replaced the method on a block.
    """
    taken = [block for block in blocks if "attention" in vars(block)]
    if taken:
        raise CapabilityError(
            f"attention of {type(taken[0]).__name__} was replaced on the instance by "
            f"{vars(taken[0])['attention']!r}; remove that first"
        )
    try:
        for layer, block in enumerate(blocks):
            function = make_attention(layer, places, length, store, mask)
            block.attention = MethodType(function, block)
        yield
    finally:
        for block in blocks:
            vars(block).pop("attention", None)


def make_attention(
    layer: int, places: Tensor, length: int, store: KeyValueStore | None, mask: Tensor | None
) -> Callable[..., tuple[Tensor, None]]:
    """The attention of one layer, with explicit places."""

    def attention(
        block: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        batch, count, width = q.shape
        if block.q_norm is not None and block.k_norm is not None:
            kind = k.dtype
            q, k = block.q_norm(q).to(kind), block.k_norm(k).to(kind)
        size = width // block.config.n_heads
        q, k, v = (x.view(batch, count, -1, size).transpose(1, 2) for x in (q, k, v))
        if getattr(block.config, "rope", True):
            q, k = (turn(block, x, places, length) for x in (q, k))
        if store is not None:
            k, v = store.update(k, v, layer)
        if mask is None:
            mixed = block._scaled_dot_product_attention(q, k, v, is_causal=False)
        else:
            mixed = nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1]
            )
        return block.attn_out(mixed.transpose(1, 2).reshape(batch, count, width)), None

    return attention


def turn(block: Any, x: Tensor, places: Tensor, length: int) -> Tensor:
    """Queries or keys `[B, H, M, D]` after the block's own rotary embedding, at given places."""
    kind = x.dtype
    if getattr(block.config, "rope_full_precision", True):
        x = x.float()
    with torch.autocast(x.device.type, enabled=False):
        tables = block.rotary_emb.get_rotary_embedding(length, x.device)
        sin, cos = (table.type_as(x)[0, 0][places][:, None] for table in tables)
        turned: Tensor = block.rotary_emb.apply_rotary_pos_emb(sin, cos, x)
    return turned.to(kind)
