"""Layers built as Llama's: found in a model, and run from some layer on for part of the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from erta_framework.masked import Rows


def find_llama_layers(model: nn.Module) -> Any | None:
    """The decoder inside a model whose layers are built as Llama's; None if they are not."""
    inner = getattr(model, "model", None)
    names = ("embed_tokens", "layers", "rotary_emb")
    if inner is None or not all(hasattr(inner, name) for name in names):
        return None
    first = inner.layers[0]
    fits = hasattr(first, "input_layernorm") and hasattr(
        getattr(first, "self_attn", None), "v_proj"
    )
    return inner if fits else None


@contextmanager
def narrow_layers(inner: Any, rows: Rows, first_layer: int) -> Iterator[None]:
    """While it is open, a call on every position runs the layers from `first_layer` on on `rows`.

    Hooks on the layers narrow what the model gives them; they are removed after the call.

    Args:
        inner: The decoder; see `find_llama_layers`.
        rows: The positions that go on.
        first_layer: The first layer that runs on them alone.
    """
    handles = [
        layer.register_forward_pre_hook(
            partial(narrow_inputs, rows, number == first_layer), with_kwargs=True
        )
        for number, layer in enumerate(inner.layers)
        if number >= first_layer
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def narrow_inputs(
    rows: Rows, is_first: bool, _: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer is given, `[B, L, ...]`, for the rows of the call alone.

    Args:
        rows: The positions.
        is_first: Whether the layer below ran on every position.
        args: The hidden states, and what a model may give beside them.
        given: Mask `[B, 1, L, L]`, places `[B, L]`, and rotations `[B, L, D]`.
    """
    hidden, *more = args
    if is_first:
        hidden = rows.gather(hidden)
    narrowed = dict(given)
    mask, places = given.get("attention_mask"), given.get("position_ids")
    if mask is not None:
        narrowed["attention_mask"] = rows.gather(mask.transpose(1, 2)).transpose(1, 2)
    if places is not None:
        narrowed["position_ids"] = rows.gather(spread(places, rows))
    turned = given.get("position_embeddings")
    if turned is not None:
        narrowed["position_embeddings"] = tuple(rows.gather(spread(x, rows)) for x in turned)
    return (hidden, *more), narrowed


def spread(x: Tensor, rows: Rows) -> Tensor:
    """`x` `[B, L, ...]`, where it may be given once for the whole batch, `[1, L, ...]`."""
    return x.expand(len(rows.index), *x.shape[1:])
