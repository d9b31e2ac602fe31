"""What a calibration batch must hold: every sample once a run, on a grid without standstill."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from erta_framework.errors import PolicyError
from erta_policies.fitted._cached_run import RUNS


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
