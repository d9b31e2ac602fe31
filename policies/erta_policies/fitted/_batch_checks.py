"""What a calibration run must have: every sample once a run, a moving grid, a known target."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from erta_framework import SessionInfo
from erta_framework.calibration import Solution
from erta_framework.errors import PolicyError
from erta_policies.fitted._cached_run import RUNS
from erta_policies.fitted._solver_variable import is_one_step


def count_samples(batch: int) -> int:
    """Samples of a batch that holds each of them once a run.

    Raises:
        PolicyError: The batch cannot be divided.
    """
    if batch % len(RUNS):
        raise PolicyError(
            f"FittedProfiler needs each sample {len(RUNS)} times in a batch, got a batch of "
            f"{batch}; repeat prompts and noise, the whole batch after the whole batch, as "
            "`erta calibrate` does"
        )
    return batch // len(RUNS)


def check_copies(value: Tensor, what: str) -> None:
    """Refuse copies that differ at the first step.

    Args:
        value: All copies, `[R n, C, ...]`.
        what: What they are, for the message.

    Raises:
        PolicyError: Says by how much they differ.
    """
    first, *others = value.float().chunk(len(RUNS))
    gap = max(float((other - first).abs().max()) for other in others)
    # kernels may add in another order for another place in the batch
    if gap > 1e-2 * float(first.abs().max()) + 1e-6:
        raise PolicyError(
            f"FittedProfiler needs each sample {len(RUNS)} times in a batch, but the {what} of "
            f"the copies differ by {gap:.3g} at the first step; repeat prompts and noise, the "
            "whole batch after the whole batch, as `erta calibrate` does"
        )


def check_nodes(nodes: Sequence[float]) -> tuple[float, ...]:
    """The nodes of a grid on which every step goes somewhere.

    Raises:
        PolicyError: Two of them are the same.
    """
    still = [index for index, (a, b) in enumerate(pairwise(nodes)) if a == b]
    if still:
        raise PolicyError(
            f"step {still[0]} of this schedule ends where it starts, at {nodes[still[0]]:g}, so "
            "FittedProfiler cannot tell its velocity; calibrate with a scheduler of one network "
            "call a step"
        )
    return tuple(nodes)


def require_solution(solution: Solution | None, session: SessionInfo, who: str) -> None:
    """Refuse a run whose exact solution is not known, or cannot be the target.

    Args:
        solution: The solution of the samples.
        session: Facts of the run.
        who: The profiler, for the message.

    Raises:
        PolicyError: There is none, or the solver has memory.
        InputError: It is of another schedule.
    """
    if solution is None:
        raise PolicyError(
            f"{who} has the target 'exact' and no solution of these samples; "
            "calibrate with Sampler.calibrate, or give solution=solve(sampler, model, prompts)"
        )
    if not is_one_step(session):
        raise PolicyError(
            f"{who} has the target 'exact', which one step leads to under a "
            f"solver without memory only, and this is {session.solver}; calibrate with Euler "
            "steps or DDIM"
        )
    solution.require_sigmas(session.sigmas)


def require_one_step(session: SessionInfo) -> None:
    """Refuse a solver whose steps depend on earlier outputs.

    Raises:
        PolicyError: Names it.
    """
    if not is_one_step(session):
        raise PolicyError(
            "the search of a schedule leads from one computed step to the next, which works under "
            f"a solver without memory only, and this is {session.solver}; calibrate with Euler "
            "steps or DDIM, or with search=0"
        )


def require_two_samples(count: int) -> None:
    """Refuse a batch in which nothing can be fitted to some samples and judged by others.

    Raises:
        PolicyError: There is one sample.
    """
    if count < 2:
        raise PolicyError(
            "the search of a schedule fits the samples of a batch together, and this one has "
            "one; calibrate with a batch_size of 8 or more, or with search=0 (a pipeline that is "
            "called for one prompt at a time has no others)"
        )
