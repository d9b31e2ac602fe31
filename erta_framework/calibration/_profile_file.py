"""A profile's file: one safetensors file, of which every byte is distrusted until it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from erta_framework.errors import ProfileError
from erta_framework.files import write_atomically
from erta_framework.text import parse_json

SCHEMA = "erta_framework.profile/1"
MOST_HEADER = 1 << 20
"""Most bytes of the header: names, shapes and all metadata."""
MOST_SAMPLES = 1 << 53
"""Whole numbers up to here are exact in float64."""


def read_profile_file(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a profile file, which is read once and not mapped.

    Raises:
        ProfileError: It is no safetensors file, truncated, or no profile of this schema.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise ValueError(f"its header ends at byte {length + 8}, the file at {size}")
            if length > MOST_HEADER:
                raise ValueError(f"its header has {length} bytes, at most {MOST_HEADER} are read")
            header = file.read(length)
            metadata = _read_metadata(header)
            # of something else, such as the weights of a model, the data is not even read
            _require_schema(path, metadata)
            statistics = load(start + header + file.read())
    except UNREADABLE as error:
        raise ProfileError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated or damaged: "
            "calibrate again, or fetch it again"
        ) from error
    return metadata, statistics


UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    RuntimeError,
)
"""What safetensors and torch raise of bytes that are no tensors; `ProfileError` is none of them."""


def write_profile_file(
    path: Path, statistics: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write a profile file whole or not at all, replacing an older one.

    Raises:
        OSError: It could not be written; an older one is as it was.
    """
    # cloned, because safetensors refuses tensors that share memory
    held = {name: value.cpu().clone().contiguous() for name, value in statistics.items()}
    write_atomically(path, save(held, {"schema": SCHEMA, **metadata}))


def read_facts(text: str) -> dict[str, str]:
    """A mapping of strings, as fingerprint and provenance are.

    Raises:
        ValueError: It is something else, or nested too deep to be read.
    """
    facts = parse_json(text)
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError(f"expected a mapping of strings, got {text[:80]}")
    return facts


def read_samples(text: str) -> int:
    """The number of samples.

    Raises:
        ValueError: It is no number of samples.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 18 and 0 < int(text) < MOST_SAMPLES):
        raise ValueError(f"samples is {text[:40]!r}, it must be a whole number of at least 1")
    return int(text)


def _read_metadata(header: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file."""
    whole = parse_json(header.decode("utf-8"))
    found = whole.get("__metadata__", {}) if isinstance(whole, dict) else None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError("its header is no mapping of tensors with metadata of strings")
    return found


def _require_schema(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("schema") != SCHEMA:
        raise ProfileError(
            f"{path} has schema {metadata.get('schema')!r}, this version reads {SCHEMA!r}; "
            "it is no profile, or one of another version: calibrate again"
        )
