"""The tensors of a measured front in a profile: their names, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from erta_framework.calibration import Entry, Profile, ProfileKind
from erta_framework.errors import ProfileError

MASKS = ("computed", "refined")
NUMBERS = ("predicted", "psnr", "psnr_std", "refined_psnr", "seconds")
FACTS = ("batch", "device", "planner", "policies", "spent", "target")
FULL, EXACT = "the full run", "the exact solution"
"""What quality is measured to."""
SHAPES: Mapping[str, Entry] = MappingProxyType(
    {
        **dict.fromkeys(MASKS, Entry(shape="n T", most=1.0, dtype=torch.uint8)),
        **dict.fromkeys(NUMBERS[:-1], Entry(shape="n", least=None, finite=False)),
        "seconds": Entry(shape="s", least=None, finite=False),  # NaN where they were left out
    }
)
"""The tensors of a front, by the ends of their names."""
REMEDY = "measure it with `erta plan --profile FILE --policy NAME --measure`"


def read_tables(profile: Profile, place: str) -> dict[str, Tensor]:
    """The tables of a front by the ends of their names, which begin with `place`.

    Raises:
        ProfileError: One is missing, or they do not fit each other.
    """
    named = {f"{place}{name}": entry for name, entry in SHAPES.items()}
    ProfileKind(profile.kind, named).check(profile)
    table = {name: profile.statistics[f"{place}{name}"] for name in SHAPES}
    plans, seconds = len(table["computed"]), len(table["seconds"])
    if seconds != plans + 1 or plans == 0:
        raise ProfileError(
            f"{place}seconds of {profile!r} holds {seconds} numbers for {plans} plans, it must be "
            f"one more, of the full run; {REMEDY}"
        )
    return table


def read_count(profile: Profile, text: str) -> int:
    """A count in the provenance of a profile, 0 if it is not there.

    Raises:
        ProfileError: It is no number.
    """
    if text and not (text.isascii() and text.isdigit() and len(text) < 18):
        raise ProfileError(f"{profile!r} says {text[:40]!r} where a count must be; {REMEDY}")
    return int(text or 0)
