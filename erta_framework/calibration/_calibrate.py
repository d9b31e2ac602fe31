"""Calibration: rounds of a profiler on full runs, by any sampler or pipeline."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch
from torch import Tensor

from erta_framework.calibration._profile import Profile
from erta_framework.calibration._solution import Solution
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.plugins import Policy, Profiler

RunRound = Callable[[Profiler], Sequence[Profile]]
"""Runs the full network on the calibration samples; the profiles that the profiler emitted."""
SampleWith = Callable[[Sequence[Policy]], Tensor]
"""The calibration samples under policies, `[N, C, ...]` at the end of the run."""


def calibrate(
    profiler: Policy,
    run: RunRound,
    solve: Callable[[int], Solution] | None = None,
    sample: SampleWith | None = None,
) -> Profile:
    """Run a profiler, and those that follow it on the same samples, and merge what the last emits.

    Args:
        profiler: The first profiler.
        run: Runs one round under the given profiler, with its `calibration_copies` of each sample.
        solve: Solves the samples with so many steps for each; None where that cannot be done.
        sample: Samples under policies, for a profiler that tries its profile out; None likewise.

    Raises:
        PolicyError: A profiler emitted nothing, or is no `Profiler`.
        CapabilityError: A profiler wants to solve or to sample, where that cannot be done.
    """
    last = require_profiler(profiler)
    current: Profiler | None = last
    merged: Profile | None = None
    while current is not None:
        if current.substeps:
            if solve is None:
                raise CapabilityError(
                    f"{current!r} wants the exact solution of its samples, which this driver does "
                    "not make; calibrate with Sampler on the same network, or give the profiler "
                    "its solution"
                )
            current = current.with_solution(solve(current.substeps))
        emitted = run(current)
        if not emitted:
            raise PolicyError(f"{current!r} emitted no profile from on_session_end")
        merged = Profile.merge(emitted)
        last, current = current, current.next_profiler(merged)
    assert merged is not None
    if not last.tries_out:
        return merged
    if sample is None:
        raise CapabilityError(
            f"{last!r} tries its profile out on its samples, which this driver does not offer; "
            "calibrate with Sampler on the same network"
        )
    return last.finish(merged, sample)


def require_profiler(policy: object) -> Profiler:
    """The policy, as a profiler.

    Raises:
        PolicyError: It is none.
    """
    if not isinstance(policy, Profiler):
        raise PolicyError(
            f"{policy!r} is no profiler, so it cannot calibrate; a profiler derives from "
            "erta_framework.Profiler and returns a Profile from on_session_end"
        )
    return policy


def find_profiler(policies: Sequence[Policy], given: Policy | None = None) -> Profiler:
    """The given profiler, else the first that one of the policies asks for.

    Raises:
        PolicyError: There is none.
    """
    if given is not None:
        return require_profiler(given)
    for policy in policies:
        if (found := policy.calibrator()) is not None:
            return require_profiler(found)
    raise PolicyError(
        "none of the policies needs calibration; give calibrate(..., profiler=...), such as the "
        "profiler that a policy's calibrator() names"
    )


def describe_samples(prompts: Sequence[str], seed: int) -> dict[str, str]:
    """Provenance of the samples: a hash of the prompts, and the seeds."""
    return {
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        "seeds": f"{seed}..{seed + len(prompts) - 1}",
    }


def describe_run(device: torch.device) -> dict[str, str]:
    """Provenance of the run: day, torch and the kind of machine."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {device.type}",
    }
