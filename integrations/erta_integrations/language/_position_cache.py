"""A `Cache` of transformers over keys and values by position."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from erta_framework.optional_dependencies import require_extra
from erta_integrations.language._store import KeyValueStore


def make_cache(store: KeyValueStore) -> Any:
    """A `transformers.Cache` whose `update` scatters the rows of a call into a store.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    require_extra("transformers", extra="language", wanted_by="models of transformers")
    from transformers import Cache

    class PositionCache(Cache):
        """Keys and values by position; the class of the model never learns of it."""

        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor]:
            return store.update(key_states, value_states, layer_idx)

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            return 0

    return PositionCache(layers=[])
