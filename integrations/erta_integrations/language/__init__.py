"""Masked language models: keys and values by position, and adapters of unmodified models."""

from erta_integrations.language._store import (
    KeyValueStore,
    compare_values,
    find_places,
    place_rows,
)

__all__ = ["KeyValueStore", "compare_values", "find_places", "place_rows"]
