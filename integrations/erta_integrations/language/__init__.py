"""Masked language models: keys and values by position, and adapters of unmodified models."""

from erta_integrations.language._attach import attach_language
from erta_integrations.language._hugging_face import HuggingFaceModel, Shift
from erta_integrations.language._llada import LLaDAModel
from erta_integrations.language._padding import find_places
from erta_integrations.language._pipeline import LanguageAttachment
from erta_integrations.language._position_cache import make_cache
from erta_integrations.language._store import KeyValueStore, compare_values, place_rows

__all__ = [
    "HuggingFaceModel",
    "KeyValueStore",
    "LLaDAModel",
    "LanguageAttachment",
    "Shift",
    "attach_language",
    "compare_values",
    "find_places",
    "make_cache",
    "place_rows",
]
