"""Calibration: rounds of a profiler on full runs, by any sampler or pipeline."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from erta_framework.calibration._network_memory import NetworkMemory
from erta_framework.calibration._profile import Profile
from erta_framework.calibration._solution import Solution
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.plugins import Policy, Profiler

RunRound = Callable[[Profiler], Sequence[Profile]]
"""Runs the full network on the calibration samples; the profiles that the profiler emitted."""


class SampleWith(Protocol):
    """Samples the calibration samples under policies."""

    def __call__(self, policies: Sequence[Policy], *, keep: bool = False) -> Tensor:
        """The latents at the end of the run, `[N, C, ...]`.

        Args:
            policies: In call order.
            keep: Later runs begin like this one. What its network said is kept for them.
        """
        ...


@runtime_checkable
class SampleWithGradients(SampleWith, Protocol):
    """Samples them within autograd as well: a driver that can, in which a network may not.

    Example:
        >>> if isinstance(sample, SampleWithGradients):  # doctest: +SKIP
        ...     ends = sample.differentiate([FixedWeights(weights=weights.requires_grad_())])
        ...     (slope,) = torch.autograd.grad(ends.square().sum(), weights)
    """

    def differentiate(self, policies: Sequence[Policy]) -> Tensor:
        """The same latents, bit by bit, with the graph to tensors that the policies hold.

        Only the inputs of network calls are kept. A call is made again for its gradient, and
        counts as `GRADIENT_CALLS` calls.

        Args:
            policies: In call order.

        Raises:
            CapabilityError: The network lets no gradient through to its latents.
        """
        ...


def calibrate(
    profiler: Policy,
    run: RunRound,
    solve: Callable[[int], Solution] | None = None,
    sample: SampleWith | None = None,
    memory: NetworkMemory | None = None,
) -> Profile:
    """Run a profiler, and those that follow it on the same samples, and merge what the last emits.

    Args:
        profiler: The first profiler.
        run: Runs one round under the given profiler, with its `calibration_copies` of each sample.
        solve: Solves the samples with so many steps for each; None where that cannot be done.
        sample: Samples under policies, for a profiler that tries its profile out; None likewise.
        memory: Stands before the network. The profile's provenance then says as `full_runs` what
            the calibration took: all network calls, divided by those of one full run of the same
            samples.

    Raises:
        PolicyError: A profiler emitted nothing, or is no `Profiler`.
        CapabilityError: A profiler wants to solve or to sample, where that cannot be done.
    """
    last = with_solution(require_profiler(profiler), solve)
    if last.tries_before:
        last = last.begin(require_sample(last, sample))
    current: Profiler | None = last
    merged: Profile | None = None
    full = 0.0
    while current is not None:
        current = with_solution(current, solve)
        before = 0 if memory is None else memory.rows
        emitted = run(current)
        if not emitted:
            raise PolicyError(f"{current!r} emitted no profile from on_session_end")
        if memory is not None and not full:
            full = (memory.rows - before) / current.calibration_copies
        merged = Profile.merge(emitted)
        last, current = current, current.next_profiler(merged)
    assert merged is not None
    if last.tries_out:
        merged = last.finish(merged, require_sample(last, sample))
    if memory is None or not full:
        return merged
    return merged.with_provenance(full_runs=f"{memory.rows / full:.1f}")


def with_solution(profiler: Profiler, solve: Callable[[int], Solution] | None) -> Profiler:
    """The profiler with the exact solution of its samples, if it wants one.

    Raises:
        CapabilityError: This driver does not make it.
    """
    if not profiler.substeps:
        return profiler
    if solve is None:
        raise CapabilityError(
            f"{profiler!r} wants the exact solution of its samples, which this driver does not "
            "make; calibrate with Sampler on the same network, or give the profiler its solution"
        )
    return profiler.with_solution(solve(profiler.substeps))


def require_sample(profiler: Profiler, sample: SampleWith | None) -> SampleWith:
    """How to sample under policies.

    Raises:
        CapabilityError: This driver does not offer it.
    """
    if sample is None:
        raise CapabilityError(
            f"{profiler!r} tries something out on its samples, which this driver does not "
            "offer; calibrate with Sampler on the same network"
        )
    return sample


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
