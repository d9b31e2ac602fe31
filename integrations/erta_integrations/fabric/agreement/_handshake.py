"""What ranks that share a sample compare: a few numbers, and the texts where those differ."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist

from erta_framework import SessionInfo
from erta_framework.text import shorten
from erta_integrations.fabric.agreement._collectives import (
    AgreementError,
    Ledger,
    choose_device,
    format_ranks,
    gather,
    reduce_max,
)

FACTS = ("number of steps", "first step", "batch size")
PLANS = ("kind of schedule", "plan")
LONGEST = 400
"""Characters of a plan in an error."""


def check_start(
    session: SessionInfo,
    plan: str,
    static: bool,
    group: dist.ProcessGroup,
    timeout: float,
    ledger: Ledger,
) -> None:
    """Compare what the ranks of a group are about to do, in one reduction.

    Args:
        session: The request.
        plan: The schedule in words; those of static schedules must be equal.
        static: Whether it is known beforehand.
        group: Ranks that share a sample.
        timeout: Seconds to wait for the slowest of them.
        ledger: Where it is counted.

    Raises:
        AgreementError: A rank is gone or late, or runs another schedule, plan or batch.
    """
    where = f"at the start of request {session.request_id!r}"
    facts = (session.num_steps, session.first, session.shape[0])
    plans = (int(static), make_digest(plan) if static else 0)
    ledger.handshakes += 1
    found = compare_numbers((*facts, *plans), group, timeout, where, session.device, ledger)
    for name, mine, (low, high) in zip(FACTS, facts, found[: len(FACTS)], strict=True):
        if high != low:
            raise AgreementError(
                f"{where}: the {name} is {mine} on rank {dist.get_rank()}, but from "
                f"{low} to {high} within its group ({format_ranks(group)}); ranks that "
                "share a sample run the same schedule and batch, others belong in another group"
            )
    if any(low != high for low, high in found[len(FACTS) :]):
        texts = gather_texts(plan, group, timeout, where, ledger)
        ranks = dist.get_process_group_ranks(group)
        said = "; ".join(
            f"rank {rank}: {shorten(text, LONGEST)}"
            for rank, text in zip(ranks, texts, strict=True)
            if rank == ranks[0] or text != texts[0]
        )
        raise AgreementError(
            f"{where}: the ranks of a group ({format_ranks(group)}) that share a sample have "
            f"different plans. {said}. Give every rank the same policies, profile and budget"
        )


def compare_texts(
    text: str, group: dist.ProcessGroup, timeout: float, where: str, ledger: Ledger
) -> list[str]:
    """The texts of all ranks where they differ, in the order of the group; else none.

    Raises:
        AgreementError: A rank is gone or late.
    """
    cpu = torch.device("cpu")
    ledger.handshakes += 1
    ((low, high),) = compare_numbers((make_digest(text),), group, timeout, where, cpu, ledger)
    return [] if low == high else gather_texts(text, group, timeout, where, ledger)


def compare_numbers(
    numbers: tuple[int, ...],
    group: dist.ProcessGroup,
    timeout: float,
    where: str,
    device: torch.device,
    ledger: Ledger,
) -> list[tuple[int, int]]:
    """The least and the most of each number within the group, in one reduction."""
    both = torch.tensor(
        [*numbers, *(-number for number in numbers)], device=choose_device(group, device)
    )
    ledger.bytes += both.nbytes
    found = reduce_max(both, group, timeout, where).tolist()
    half = len(numbers)
    return [(-low, high) for high, low in zip(found[:half], found[half:], strict=True)]


def gather_texts(
    text: str, group: dist.ProcessGroup, timeout: float, where: str, ledger: Ledger
) -> list[str]:
    """The text of every rank, in the order of the group."""
    data = bytearray(text.encode())
    device = choose_device(group, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    size = torch.tensor([len(data)], device=device)
    sizes = [int(one) for one in gather(size, group, timeout, where)]
    # tensors of one size are gathered, so each rank pads to the longest
    padded = torch.zeros(max(1, *sizes), dtype=torch.uint8)
    if data:
        padded[: len(data)] = torch.frombuffer(data, dtype=torch.uint8)
    ledger.bytes += size.nbytes + padded.nbytes
    rows = gather(padded.to(device), group, timeout, where)
    return [bytes(row.tolist()[:n]).decode() for row, n in zip(rows, sizes, strict=True)]


def make_digest(text: str) -> int:
    """A number of 62 bits for a text, which fits with either sign."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2
