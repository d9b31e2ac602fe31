"""How policies read their profile, and how profilers emit theirs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from erta_framework import Call, Policy, Profile, Profiler, Seam, SessionInfo, Step, hookimpl
from erta_framework.calibration import make_fingerprint
from erta_framework.errors import InputError, PolicyError, ProfileError

ProfileSource = str | Path | Profile
"""A profile, or the file that holds it."""
T = TypeVar("T")


# -------------------------------------------------------------------------------- reading
def load_profile(policy: Policy, source: ProfileSource | None, kinds: tuple[str, ...]) -> Profile:
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


def require_match(profile: Profile, session: SessionInfo, allow: Collection[str]) -> None:
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


def read_branches(profile: Profile) -> tuple[str, ...]:
    """Names of the branches of a profile, in the order of its rows."""
    return tuple(profile.fingerprint["branches"].split(","))


def require_one_option(policy: Policy, who: str, options: Sequence[str], missing: str) -> None:
    """Refuse a policy that got none or several of the options that exclude each other.

    Args:
        policy: With a setting for each option; None where it was not given.
        who: Name of the method, for the message.
        options: What the settings are, as written in the remedy: `"model=<published>"`.
        missing: What is missing if none was given.

    Raises:
        PolicyError: Names the options that were given, and all that there are.
    """
    names = [option.partition("=")[0] for option in options]
    given = [name for name in names if getattr(policy, name) is not None]
    if len(given) != 1:
        raise PolicyError(
            f"{who} got {' and '.join(given) or missing}; give exactly one of "
            f"{', '.join(options[:-1])} or {options[-1]}"
        )


# ------------------------------------------------------------------------------- emitting
class RunProfiler(Profiler):
    """Base of profilers that observe whole full runs and emit one profile for each.

    It refuses runs that start late or of which other ranks evaluate a part. Nothing is emitted for
    a run that failed. A subclass observes, and summarises a finished run in `summarise`.
    """

    kind: ClassVar[str]
    """Kind of the profiles that it emits."""

    def summarise(self, session: SessionInfo) -> Profile | None:
        """The profile of a run; None if it stopped before its last step."""
        raise NotImplementedError(f"{type(self).__name__} does not summarise its runs")

    def emit(
        self,
        session: SessionInfo,
        statistics: Mapping[str, Tensor],
        facts: Mapping[str, str] | None = None,
        provenance: Mapping[str, str] | None = None,
        samples: int | None = None,
    ) -> Profile:
        """A profile with the fingerprint of a run.

        Args:
            session: The run.
            statistics: Sums over samples.
            facts: Further fields of the fingerprint.
            provenance: How it was made; not compared with runs.
            samples: Samples that were summed; by default the whole batch.
        """
        return Profile(
            kind=self.kind,
            fingerprint={**make_fingerprint(session), **(facts or {})},
            statistics=dict(statistics),
            samples=session.shape[0] if samples is None else samples,
            provenance=dict(provenance or {}),
        )

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_whole_run(self, session)

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> Profile | None:
        return None if error is not None else self.summarise(session)


def order_branches(session: SessionInfo, sums: Mapping[str, T], empty: T) -> dict[str, T]:
    """The sums of each branch in the order of the run; `empty` for a branch that never ran."""
    return {name: sums.get(name, empty) for name in session.branches or tuple(sums)}


def read_reference(step: Step, call: Call) -> Tensor:
    """What a method's "residual" is taken against: the latents, or nothing.

    Methods that measure residuals measure what is reused. Where core reuses the output instead of
    the residual (see `SessionInfo.reused`), the reference is 0 and their residual is the output.

    Returns:
        Of the shape of `call.x`.
    """
    if step.session.reused == "output" and call.seam is Seam.LATENT:
        return torch.zeros_like(call.x)
    return call.x


def require_computed(policy: Policy, step: Step, call: Call) -> None:
    """Refuse a call in which the network did not run.

    Raises:
        PolicyError: Names the step and branch.
    """
    if not call.ran:
        raise PolicyError(
            f"{type(policy).__name__} observes full runs, but step {step.index} of branch "
            f"{call.branch!r} was reused; calibrate without skip policies"
        )


def require_whole_run(policy: Policy, session: SessionInfo) -> None:
    """Refuse a run that does not start at step 0, or of which other ranks see a part.

    Raises:
        InputError: Names the first step.
        PolicyError: Other ranks evaluate some of the branches.
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
