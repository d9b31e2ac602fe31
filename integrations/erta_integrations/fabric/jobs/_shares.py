"""Calibration divided over processes: profiles are sums, so each process adds up its share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from erta_framework.calibration import Profile
from erta_framework.jobs import CalibrationRequest


def list_shares(count: int, world: int) -> list[range]:
    """The calibration prompts of each process, in order; empty for some where they are few.

    Example:
        >>> list_shares(5, 2)
        [range(0, 2), range(2, 5)]
    """
    return [range(rank * count // world, (rank + 1) * count // world) for rank in range(world)]


def merge_shares(shares: Iterable[Profile], request: CalibrationRequest) -> Profile:
    """The profile of all prompts of a request, from those of its processes in order.

    Raises:
        ProfileMismatchError: They are not of the same run; names what differs.
    """
    prompts = request.prompts
    return Profile.merge(list(shares)).with_provenance(
        prompts=hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        seeds=f"{request.seed}..{request.seed + len(prompts) - 1}",
    )
