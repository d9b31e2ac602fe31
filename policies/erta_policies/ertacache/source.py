"""How the parts of ERTACache hold their profile: a path or a loaded one, read once."""

from __future__ import annotations

from pathlib import Path

from erta_framework import Policy, Profile
from erta_framework.errors import PolicyError

ProfileSource = str | Path | Profile


def loaded(policy: Policy, source: ProfileSource | None, kinds: tuple[str, ...]) -> Profile:
    """The profile of a policy, read from its file if need be.

    Raises:
        PolicyError: There is none.
        ProfileError: It cannot be read, or another profiler emitted it.
    """
    if source is None:
        raise PolicyError(
            f"{policy!r} needs profile=...; make one with `erta calibrate` or Sampler.calibrate"
        )
    profile = source if isinstance(source, Profile) else Profile.load(source)
    if profile.kind not in kinds:
        profile.require_kind(kinds[0], wanted_by=type(policy).__name__)
    return profile
