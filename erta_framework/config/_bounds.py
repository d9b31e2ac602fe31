"""How large the numbers and lists of a configuration may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from erta_framework.config._references import join
from erta_framework.config._yaml import refuse_beyond
from erta_framework.errors import ConfigError
from erta_framework.text import escape_line, show_value

WIDEST = 2**63 - 1
"""What a seed of torch holds."""
MOST_STEPS = 10_000
LIMITS: Mapping[str, tuple[float, float]] = {
    "steps": (1, MOST_STEPS),
    "num_steps": (1, MOST_STEPS),
    "calls": (1, MOST_STEPS),
    "seed": (-WIDEST - 1, WIDEST),
    "batch_size": (0, 65_536),
    "samples": (1, 65_536),
    "devices": (1, 65_536),
    "num_nodes": (1, 65_536),
    "lease": (-1e7, 1e7),
    "shift": (1e-6, 1e6),
    "time_scale": (1e-6, 1e6),
    "train_steps": (1, 100_000),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "beta_min": (0, 1e4),
    "beta_max": (0, 1e4),
    "rho": (1e-3, 1e3),
    "scale": (-1e4, 1e4),
}
"""The least and the most of a number, by the last part of its key; a class may be stricter."""
WHOLE = 1_000_000
"""The most of any other whole number, either side of 0."""
REAL = 1e12
"""The most of any other number, either side of 0."""
LISTS: Mapping[str, int] = {"policies": 100}
"""The most items of a list, by its key."""


def check_bounds(values: object, where: str) -> None:
    """Refuse a configuration that is too deep or too large, or has a number that is.

    Raises:
        ConfigError: Names the key, the value and the bound.
    """
    queue: list[tuple[str, str, Any, int]] = [(where, "", values, 0)]
    seen = 0
    while queue:
        place, key, value, level = queue.pop()
        seen += 1
        refuse_beyond(seen, level, where)
        if isinstance(value, Mapping):
            queue += [(join(place, k), str(k), v, level + 1) for k, v in value.items()]
        elif isinstance(value, list | tuple):
            if len(value) > LISTS.get(key, len(value)):
                raise ConfigError(
                    f"{escape_line(place)} has {len(value)} items, the most are {LISTS[key]}"
                )
            refuse_beyond(seen + len(value), level, where)
            queue += [(join(place, k), "", v, level + 1) for k, v in enumerate(value)]
        elif isinstance(value, str) and key in LIMITS:
            check_number(as_spelled(value), key, place)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            check_number(value, key, place)


def check_number(value: float | None, key: str, place: str) -> None:
    """Refuse a number beyond its bound.

    Raises:
        ConfigError: Names the key, the value and the bound.
    """
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{escape_line(place)} is {value}; write a finite number")
    widest = WHOLE if isinstance(value, int) else REAL
    least, most = LIMITS.get(key, (-widest, widest))
    if not least <= value <= most:
        bound = f"the most is {most}" if value > most else f"the least is {least}"
        raise ConfigError(f"{escape_line(place)} is {show_value(value)}; {bound}")


def as_spelled(text: str) -> float | None:
    """The number that a text spells, which a field of numbers takes; None for another text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
