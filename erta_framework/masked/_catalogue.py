"""The catalogue of decoders, which the configuration makes by their fields."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import is_dataclass

from erta_framework.masked._decoder import Decoder
from erta_framework.plugins import Catalogue
from erta_framework.text import show_value


def open_decoder_catalogue(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of decoders (`erta_framework.decoders`): dataclasses that are `Decoder`s."""
    return Catalogue("erta_framework.decoders", _check_decoder, only)


def _check_decoder(loaded: object) -> str | None:
    if isinstance(loaded, type) and issubclass(loaded, Decoder) and is_dataclass(loaded):
        return None
    return (
        f"is {show_value(loaded)}, not a dataclass that is a subclass of "
        "erta_framework.masked.Decoder"
    )
