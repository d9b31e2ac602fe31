"""How policies read their profile, and how profilers emit theirs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from erta_framework import Call, Policy, Profile, Profiler, Seam, SessionInfo, Step, hookimpl
from erta_framework.calibration import ProfileKind, make_fingerprint
from erta_framework.errors import (
    InputError,
    MissingProfileError,
    NonFiniteError,
    PolicyError,
    ProfileError,
)

ProfileSource = str | Path | Profile
"""A profile, or the file that holds it."""
T = TypeVar("T")
UNSOLVABLE: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined, unused-ignore]


# -------------------------------------------------------------------------------- reading
def load_profile(
    policy: Policy, source: ProfileSource | None, kinds: tuple[ProfileKind, ...]
) -> Profile:
    """The profile of a policy, read from its file if need be, with its tensors checked.

    Raises:
        MissingProfileError: There is none.
        ProfileError: It cannot be read, another profiler emitted it, or a tensor is not what its
            profiler measures.
    """
    if source is None:
        raise MissingProfileError(
            f"{policy!r} needs profile=...; make one with `erta calibrate` or Sampler.calibrate"
        )
    profile = source if isinstance(source, Profile) else Profile.load(source)
    for kind in kinds:
        if profile.kind == kind.name:
            return kind.check(profile)
    profile.require_kind(kinds[0].name, wanted_by=type(policy).__name__)
    return profile


@contextmanager
def refuse_unsolvable(profile: Profile) -> Iterator[None]:
    """Turns a failure to solve the sums of a profile into an error that names the profile.

    Raises:
        ProfileError: The sums overflow, or a system of theirs has no solution.
    """
    try:
        yield
    except (ArithmeticError, UNSOLVABLE) as error:
        raise ProfileError(
            f"the sums of {profile!r} cannot be solved ({error}), no run gives such; calibrate "
            "again"
        ) from error


def require_finite_fit(profile: Profile, numbers: Sequence[float]) -> None:
    """Refuse coefficients that overflowed.

    Raises:
        ProfileError: One is NaN or infinite.
    """
    if not all(map(math.isfinite, numbers)):
        raise ProfileError(
            f"the fit to {profile!r} has the coefficients {list(numbers)}; calibrate again"
        )


def require_match(profile: Profile, session: SessionInfo, allow: Collection[str]) -> None:
    """Refuse a run that the profile was not calibrated for, or that its tables cannot serve.

    Raises:
        ProfileMismatchError: Names every field that differs as profile / run.
        ProfileError: The number of steps differs although it was allowed to.
    """
    profile.require(session, allow)
    steps = profile.num_steps
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
        PolicyError: Names the options that were given, and all that there are. It is a
            `MissingProfileError` if none was given and a profile is one of them.
    """
    names = [option.partition("=")[0] for option in options]
    given = [name for name in names if getattr(policy, name) is not None]
    if len(given) != 1:
        lacking = MissingProfileError if not given and "profile" in names else PolicyError
        raise lacking(
            f"{who} got {' and '.join(given) or missing}; give exactly one of "
            f"{', '.join(options[:-1])} or {options[-1]}"
        )


# ------------------------------------------------------------------------------- emitting
class RunProfiler(Profiler):
    """Base of profilers that observe whole full runs and emit one profile for each.

    It refuses runs that start late or of which other ranks evaluate a part. Nothing is emitted for
    a run that failed. A subclass observes, and summarises a finished run in `summarise`.
    """

    kind: ClassVar[ProfileKind]
    """Kind of the profiles that it emits, with what their tensors must satisfy."""

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

        Raises:
            ProfileError: A sum is not what this profiler measures, such as NaN.
        """
        made = Profile(
            kind=self.kind.name,
            fingerprint={**make_fingerprint(session), **(facts or {})},
            statistics=dict(statistics),
            samples=session.shape[0] if samples is None else samples,
            provenance=dict(provenance or {}),
        )
        return self.kind.check(made)

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


def require_computed(policy: Policy, step: Step, call: Call, rows: int | None = None) -> None:
    """Refuse a call in which the network did not run, or gave NaN: sums would be worth nothing.

    Args:
        policy: Who observes.
        step: The step.
        call: The call, after the network ran.
        rows: How many rows of the output must be finite; all by default.

    Raises:
        PolicyError: Names the step and branch.
        NonFiniteError: Names the sample as well.
    """
    if not call.ran:
        raise PolicyError(
            f"{type(policy).__name__} observes full runs, but step {step.index} of branch "
            f"{call.branch!r} was reused; calibrate without skip policies"
        )
    broken = ~call.compute()[:rows].isfinite().flatten(1).all(dim=1)
    if bool(broken.any()):
        session = step.session
        places = range(len(broken)) if call.rows is None else call.rows
        # batched guidance repeats the samples
        samples = sorted(
            {places[k] % session.shape[0] for k in broken.nonzero().flatten().tolist()}
        )
        first = f" ({session.prompts[samples[0]]!r})" if samples[0] < len(session.prompts) else ""
        raise NonFiniteError(
            f"{type(policy).__name__} got NaN or infinity from the network for sample "
            f"{', '.join(map(str, samples))} of {session.shape[0]}{first}, at step {step.index} of "
            f"branch {call.branch!r} (request {session.request_id!r}); no profile is made of it: "
            "leave this prompt out, or use a wider dtype"
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
            f"{session.first}; calibrate with first=0, in a pipeline with strength=1 or without "
            "denoising_start: that profile serves a later start as well"
        )
