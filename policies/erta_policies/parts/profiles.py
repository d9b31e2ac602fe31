"""How policies hold their profile: a path or a loaded one, read once, checked against the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from erta_framework import Policy, Profile, SessionInfo
from erta_framework.errors import PolicyError, ProfileError

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


def require(profile: Profile, session: SessionInfo, allow: Collection[str]) -> None:
    """Refuse a run that the profile was not calibrated for, or that its tables cannot serve.

    Raises:
        ProfileMismatchError: Names every field that differs as profile / run.
        ProfileError: The number of steps differs although it was allowed to.
    """
    profile.require(session, allow)
    steps = int(profile.fingerprint["num_steps"])
    if steps != session.num_steps:
        raise ProfileError(
            f"this profile has one statistic for each of {steps} steps, the run has "
            f"{session.num_steps}; allow cannot bridge that: calibrate for this number of steps"
        )
