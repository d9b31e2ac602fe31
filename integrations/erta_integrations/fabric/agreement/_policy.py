"""`Agreement`: ranks that share a sample make the same decisions."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from erta_framework import (
    Call,
    Compute,
    Decision,
    Policy,
    Reuse,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import InputError, NonFiniteError
from erta_framework.plugins import flatten
from erta_integrations.fabric.agreement._collectives import (
    DEFAULT_TIMEOUT,
    Ledger,
    choose_device,
    format_ranks,
    reduce_max,
)
from erta_integrations.fabric.agreement._handshake import check_start
from erta_integrations.fabric.agreement._plans import SamePlan

log = logging.getLogger(__name__)
UNPLANNED = "its policies decide while sampling"
OVERRULED = "another rank computes"


@dataclass(slots=True)
class Votes:
    """What one request remembers: the largest absolute value of the newest reused outputs."""

    peak: Tensor | None = None


class Agreement(Policy):
    """Makes the ranks that share a sample decide alike: if one wants to compute, all compute.

    Ranks that share a sample see different numbers: other tokens, another branch, or another sample
    of a network whose weights are divided. Without an agreement one computes and another reuses,
    and the first waits forever in a collective of the network that the second never enters.

    Inside the network, a policy that reads values through `visit.agree` gets the largest of all
    ranks, with one reduction a visit. One that reads values and does not ask is refused.

    `Agreement` wraps `decide` and belongs first in the list; `add_agreement` puts it there. Each
    decision costs one reduction of a few bytes: one a step, or one a branch where a policy decides
    for its branch only. Per-sample masks are agreed in the same reduction: a sample is reused only
    if every rank would reuse it. Steps that the framework computes without asking, such as the
    first, send nothing, since they are the same steps on every rank.

    A reused output that is not finite cannot be recomputed on the spot, because one rank alone
    cannot run the network. Every rank raises at the next decision instead; after the last step
    `Trace.raise_if_nonfinite` does. A predictor that calls `call.compute()` must do so on every
    rank.

    Attributes:
        group: The ranks that share the sample, such as `find_group(mesh, "context")`.
        timeout: Seconds to wait for the slowest rank before giving up.
        ledger: Counts of what was sent.

    Raises:
        AgreementError: A rank is gone or late, or runs another schedule or batch.
        NonFiniteError: A reused output of some rank was NaN or infinite.

    Example:
        >>> Engine([Agreement(group=group), EasyCache()])  # doctest: +SKIP
    """

    traits = Traits(collective=True)

    group: dist.ProcessGroup
    timeout: float = DEFAULT_TIMEOUT
    ledger: Ledger = dataclasses.field(default_factory=Ledger, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise InputError(f"Agreement(timeout={self.timeout}): it must be above 0 and finite")

    def __repr__(self) -> str:
        return f"Agreement(group of {self.group.size()} ranks, timeout={self.timeout:g})"

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        session.state_of(self, Votes)
        check_start(session, UNPLANNED, False, self.group, self.timeout, self.ledger)

    @hookimpl(wrapper=True)
    def decide(self, step: Step, call: Call) -> Generator[None, Decision, Decision]:
        # every rank gets here at the same steps and sends one ballot, whatever it wants: a rank
        # that left before the vote would let the others wait
        wanted = yield
        if not isinstance(wanted, Compute | Reuse):
            return wanted  # the same policies are wrong on every rank; the session says how
        rows = call.x.shape[0]
        votes = step.session.state_of(self, Votes)
        ballot = self._ballot(wanted, rows, votes, call.x)
        where = f"at step {step.index} of request {step.session.request_id!r}"
        self.ledger.votes += 1
        self.ledger.bytes += ballot.nbytes
        branch, broken, *computes = reduce_max(ballot, self.group, self.timeout, where).tolist()
        votes.peak = None
        if broken:
            raise NonFiniteError(
                f"{where}: an output that was reused since the last decision is not finite on some "
                f"rank of the group ({format_ranks(self.group)}); compute more steps, or sample in "
                "a wider dtype"
            )
        return merge_votes(wanted, "branch" if branch else "step", computes)

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        try:
            output = yield
        except Exception as error:
            if call.compute.failure is error:
                error.add_note(
                    f"{format_ranks(self.group)} compute together; if another of them failed or "
                    "died, look at its log first"
                )
            raise
        if not call.ran:
            votes = step.session.state_of(self, Votes)
            peak = torch.linalg.vector_norm(output, ord=torch.inf)
            votes.peak = peak if votes.peak is None else torch.maximum(votes.peak, peak)
        return output

    def agree(self, value: Tensor, where: str) -> Tensor:
        """The largest of each value over the ranks; NaN on all of them where it is NaN on one.

        A policy that decides inside the network asks through `visit.agree`: one reduction each.

        Args:
            value: One number, or `[N]`, as many on every rank.
            where: What is decided, for the error.

        Raises:
            AgreementError: A rank is gone or late.
        """
        sent = torch.stack([value.isnan().to(torch.float64), value.nan_to_num().double()])
        sent = sent.to(choose_device(self.group, value.device))
        self.ledger.votes += 1
        self.ledger.bytes += sent.nbytes
        broken, largest = reduce_max(sent, self.group, self.timeout, where)
        return torch.where(broken > 0, torch.nan, largest)

    def _ballot(self, wanted: Decision, rows: int, votes: Votes, x: Tensor) -> Tensor:
        """`[branch scope, not finite, compute sample 0, ...]`, one byte each."""
        mask = wanted.mask if isinstance(wanted, Reuse) else (False,) * rows
        own = [not keep for keep in mask] if mask is not None else [False] * rows
        if len(own) != rows:  # core refuses this mask below; the others must not wait for that
            own = [True] * rows
        ballot = torch.tensor([wanted.scope == "branch", False, *own], dtype=torch.uint8)
        ballot = ballot.to(choose_device(self.group, x.device))
        if votes.peak is not None:
            ballot[1] = ~votes.peak.isfinite()
        return ballot


def merge_votes(wanted: Decision, scope: str, computes: Sequence[int]) -> Decision:
    """The decision of the group, with this rank's reason.

    Args:
        wanted: What this rank's policies decided.
        scope: `"step"` or `"branch"`, the narrowest that a rank asked for.
        computes: For each sample of the batch, whether some rank computes it.
    """
    if all(computes):
        if isinstance(wanted, Compute):
            return Compute(wanted.reason, scope)
        if wanted.mask is not None and len(wanted.mask) != len(computes):
            return wanted  # core says what is wrong with it
        return Compute(f"{OVERRULED}, wanted to reuse: {wanted.reason}", scope)
    keep = None if not any(computes) else tuple(not compute for compute in computes)
    lent = wanted.branch if isinstance(wanted, Reuse) else None
    return Reuse(wanted.reason, scope, keep, lent)


def add_agreement(
    policies: Sequence[Policy],
    group: dist.ProcessGroup | None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
) -> list[Policy]:
    """The policies, with an `Agreement` or a `SamePlan` before them where ranks share a sample.

    Nothing is added, and so nothing is ever sent, where there is no group, since data-parallel
    ranks decide alone, or where the group is one rank. Where every policy is static, the ranks do
    not vote: a `SamePlan` compares their plans once a request. A log line (INFO) says which.

    Args:
        policies: As for `Engine`.
        group: The ranks that share the sample; see `find_group`.
        timeout: Seconds to wait for the slowest rank of the group.

    Example:
        >>> add_agreement([], group=None)
        []
    """
    listed = list(policies)
    if group is None or group.size() == 1:
        log.info("no agreement: no other rank shares the samples of this one")
        return listed
    parts = flatten(listed)
    if all(policy.traits.static for policy in parts):
        log.info("no votes: the schedule is static; %s compare their plans", format_ranks(group))
        return [SamePlan(group=group, policies=parts, timeout=timeout), *listed]
    log.info("%s agree on each decision", format_ranks(group))
    return [Agreement(group=group, timeout=timeout), *listed]
