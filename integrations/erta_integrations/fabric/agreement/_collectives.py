"""What the ranks of a group send each other, with a limit on how long anyone waits.

A collective works only if every rank of the group calls it, in the same order as all its other
collectives of that group. Two rules follow. Whether a rank sends must depend only on what all
ranks know alike (the step, the schedule, the list of policies), never on what it alone has seen.
And a rank that finds an error of its own takes part first and raises afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from erta_framework.errors import ErtaError

DEFAULT_TIMEOUT = 300.0
"""Seconds to wait for the slowest rank of a group."""


class AgreementError(ErtaError):
    """Ranks that share a sample could not agree: one of them is gone, late or doing another run."""


@dataclass(slots=True)
class Ledger:
    """What this process sent, over all requests.

    Attributes:
        handshakes: Reductions at the start of a request, and at its end with a static schedule.
        votes: Reductions on decisions, at most one a step where decisions are for the step.
        exchanges: Gatherings of predictions, one a step of `CFGParallel`.
        bytes: Bytes that this rank contributed to all of these.
    """

    handshakes: int = 0
    votes: int = 0
    exchanges: int = 0
    bytes: int = 0


def reduce_max(tensor: Tensor, group: dist.ProcessGroup, timeout: float, where: str) -> Tensor:
    """The elementwise maximum of a small tensor over the group, in place.

    Args:
        tensor: Of the same shape and dtype on every rank.
        group: Ranks that share a sample.
        timeout: Seconds to wait for the slowest of them.
        where: What was going on, for the error.

    Raises:
        AgreementError: A rank did not take part within the time, or is gone.
    """

    def start() -> Any:
        return dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group, async_op=True)

    run_collective(start, group, timeout, where)
    return tensor


def gather(
    tensor: Tensor, group: dist.ProcessGroup, timeout: float, where: str
) -> Sequence[Tensor]:
    """The tensor of every rank in the order of the group; arguments and errors of `reduce_max`."""
    parts = [torch.empty_like(tensor) for _ in range(group.size())]

    def start() -> Any:
        return dist.all_gather(parts, tensor, group=group, async_op=True)

    run_collective(start, group, timeout, where)
    return parts


def run_collective(
    start: Callable[[], Any], group: dist.ProcessGroup, timeout: float, where: str
) -> None:
    """Start a collective and wait for it.

    Raises:
        AgreementError: It failed or took longer than `timeout`; names the step and the ranks.
    """
    try:
        work = start()
        if work is not None:
            work.wait(timedelta(seconds=timeout))
    except RuntimeError as error:  # what torch raises for a timeout and for a lost connection
        ranks, mine = format_ranks(group), dist.get_rank()
        raise AgreementError(
            f"{where}: rank {mine} did not hear from all ranks of its group ({ranks}), with a "
            f"timeout of {timeout:g} s: {str(error).splitlines()[0][:200]}. One of them died, "
            "raised an error, or runs another number of requests or steps; look at its log, then "
            "start all ranks of the group again, with a larger timeout if it was only slow"
        ) from error


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because a rank did not come, or is gone.

    torch raises plain `RuntimeError` for it with gloo, and classes of its own with NCCL.
    """
    said = str(error).lower()
    signs = ("timed out", "timeout", "connection closed", "connection reset", "gloo", "nccl")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in said for sign in signs)
    )


def format_ranks(group: dist.ProcessGroup) -> str:
    """The global ranks of a group, such as `ranks 2, 3`."""
    return "ranks " + ", ".join(map(str, dist.get_process_group_ranks(group)))


def choose_device(group: dist.ProcessGroup, device: torch.device) -> torch.device:
    """Where a message must live: with the latents if the backend works there, else the CPU."""
    backends = dict(part.split(":") for part in dist.get_backend_config(group).split(","))
    # gloo copies through the CPU, and cannot gather elsewhere
    return torch.device("cpu") if backends.get(device.type, "gloo") == "gloo" else device
