"""How many bytes kept outputs hold, and the bound that a user may set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from erta_framework.errors import CapabilityError, InputError
from erta_framework.modules._costs import Measurement
from erta_framework.modules._places import Place

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def count_state_bytes(
    places: Sequence[Place],
    costs: Measurement,
    *,
    branches: int = 1,
    keeps: int = 1,
    inputs: int | None = None,
) -> int:
    """Count the bytes that a run holds whose policies keep the outputs of some places.

    Args:
        places: Those whose output is kept.
        costs: Of one network call at the shape and type of the run, with its batch.
        branches: Network calls a step; each keeps its own outputs.
        keeps: Outputs that are kept of each place.
        inputs: Bytes of the network's input, where an input is kept beside each output; a place of
            several modules keeps that of the network. None where none is kept.

    Raises:
        InputError: A place did not run in the measured call.

    Example:
        >>> blocks = [place for place in find_places(network) if place.kind == "block"]
        ... # doctest: +SKIP
        >>> count_state_bytes(blocks, costs, branches=2, keeps=3)  # doctest: +SKIP
        18432000
    """
    once = sum(count_output_bytes(place, costs) for place in places)
    if inputs is not None:
        own = costs.input_bytes
        once += sum(inputs if place.members else own[place.path] for place in places)
    return branches * keeps * once


def count_output_bytes(place: Place, costs: Measurement) -> int:
    """Count the bytes of a place's output, of all its visits in one network call.

    Raises:
        InputError: The place did not run in the measured call.
    """
    module = place.modules[-1]
    if module not in costs.output_bytes:
        raise InputError(
            f"the bytes of {place} are not known: {module} did not run in the measured network "
            "call; measure a call in which it runs"
        )
    return costs.output_bytes[module]


def parse_bytes(size: str | int) -> int:
    """Convert a size such as `"2GiB"`, `"512 MB"` or a number of bytes.

    Raises:
        InputError: It is no size.

    Example:
        >>> parse_bytes("1.5KiB")
        1536
    """
    found = SIZE.fullmatch(str(size).strip())
    unit = found.group(2).upper() if found else None
    if found is None or unit not in UNITS:
        raise InputError(f"memory is {size!r}; give bytes, or a size such as 512MiB or 2GiB")
    return int(Fraction(found.group(1)) * UNITS[unit])


def format_bytes(size: int) -> str:
    """Write a size so that it is not smaller when it is read again.

    Example:
        >>> format_bytes(1537)
        '1.51KiB'
    """
    for unit in ("GiB", "MiB", "KiB"):
        scale = UNITS[unit.upper()]
        if size >= scale:
            whole, part = divmod(-(-100 * size // scale), 100)
            return f"{whole}.{part:02}".rstrip("0").rstrip(".") + unit
    return f"{size}B"


def check_memory(needed: int, bound: str | int, who: str) -> None:
    """Refuse a run that would keep more than a user allows.

    Args:
        needed: Bytes, from `count_state_bytes`.
        bound: Such as `"2GiB"`.
        who: Who keeps the outputs, for the message.

    Raises:
        CapabilityError: It is more; names both and the remedy.
        InputError: The bound is no size.
    """
    allowed = parse_bytes(bound)
    if needed > allowed:
        raise CapabilityError(
            f"{who} would keep {format_bytes(needed)} of outputs, and memory is "
            f"{format_bytes(allowed)}; give memory={format_bytes(needed)}, select fewer places, or "
            "keep fewer outputs of each"
        )
