"""Reads the published constants that come with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from erta_framework.errors import PolicyError, suggest


@lru_cache(maxsize=32)
def _read(method: str) -> dict[str, Any]:
    folder = files("erta_policies.constants")
    path = folder / f"{method}.json"
    if not path.is_file():
        names = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json"))
        raise PolicyError(f"no published constants of {method!r}; " + suggest(method, names))
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def models(method: str) -> tuple[str, ...]:
    """Names of the models that constants of a method were published for.

    Raises:
        PolicyError: There is no such method.

    Example:
        >>> "wan2.1-t2v-1.3b" in models("magcache")
        True
    """
    return tuple(_read(method)["models"])


def read_published(method: str, model: str) -> Mapping[str, Any]:
    """Read the published constants of a method for a model, and where they come from.

    Args:
        method: Such as `"teacache"`.
        model: One of `models(method)`.

    Returns:
        The constants, with `repository`, `license`, `paper` and, where known, `revision`.

    Raises:
        PolicyError: Nothing was published for the model; lists what was, and how to calibrate.

    Example:
        >>> read_published("magcache", "flux.1-dev")["max_skips"]
        5
    """
    data = _read(method)
    known = data["models"]
    if model not in known:
        raise PolicyError(
            f"no constants of {method} were published for {model!r} (there are: "
            f"{', '.join(sorted(known))}); measure them with "
            f"`erta calibrate --policy {method}` and give profile=<its file>"
        )
    shared = {key: value for key, value in data.items() if key != "models"}
    # copied, because what is read is kept for the whole process
    found: dict[str, Any] = json.loads(json.dumps({**shared, **known[model]}))
    return found
