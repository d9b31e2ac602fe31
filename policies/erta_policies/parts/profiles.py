"""How policies hold their profile: a path or a loaded one, read once, checked against the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from erta_framework import Call, Policy, Profile, SessionInfo, Step
from erta_framework.errors import InputError, PolicyError, ProfileError

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


def require_full(policy: Policy, step: Step, call: Call) -> None:
    """Refuse a call that was answered without the network.

    Raises:
        PolicyError: Names the step and branch.
    """
    if not call.ran:
        raise PolicyError(
            f"{type(policy).__name__} observes full runs, but step {step.index} of branch "
            f"{call.branch!r} was reused; calibrate without skip policies"
        )


def require_whole(policy: Policy, session: SessionInfo) -> None:
    """Refuse a trajectory that does not start at step 0, or of which others see a part.

    Raises:
        InputError: Names the first step.
        PolicyError: Other processes evaluate some of the branches.
    """
    if session.divided:
        raise PolicyError(
            f"{type(policy).__name__} observes all branches ({', '.join(session.branches)}), but "
            "here other ranks evaluate some of them (CFGParallel); calibrate with CFG on one rank, "
            "or on several with each its own prompts"
        )
    if session.first != 0:
        raise InputError(
            f"{type(policy).__name__} observes whole trajectories, this one starts at step "
            f"{session.first}; calibrate with first=0"
        )
