"""`SamePlan`: ranks that share a sample are told at once where their static schedules differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

from erta_framework import Call, Policy, Reuse, SessionInfo, Step, Traits, hookimpl
from erta_framework.budgets import as_planner
from erta_framework.errors import ErtaError, InputError
from erta_framework.plugins import find_hooks
from erta_integrations.fabric.agreement._collectives import (
    DEFAULT_TIMEOUT,
    AgreementError,
    Ledger,
    format_ranks,
    is_lost_connection,
)
from erta_integrations.fabric.agreement._groups import create_group
from erta_integrations.fabric.agreement._handshake import check_start, compare_texts

JOIN = 10.0
"""Seconds that a rank whose network failed waits to learn what the others decided."""
STEERS = ("decide", "adjust_interval")
"""Hooks that make a schedule."""


@dataclass(slots=True)
class Decisions:
    """What one request decided on this rank, by step and place: `compute` or `reuse`."""

    made: dict[tuple[int, str], str] = field(default_factory=dict)
    closed: bool = False

    def __str__(self) -> str:
        return json.dumps([[*place, what] for place, what in self.made.items()])


@dataclass(slots=True)
class Channel:
    """A group of its own for messages, which never meet those of a network; made when needed."""

    group: dist.ProcessGroup | None = None


class SamePlan(Policy):
    """Compares the static schedules of the ranks that share a sample, once a request.

    A static schedule is known before sampling, so ranks need not vote on it. But they may have been
    given different ones, or a policy may declare itself static and decide by what it measures. One
    rank then computes and waits in a collective of the network that another never enters.

    `add_agreement` puts it first in the list. When a request begins, the ranks compare a digest of
    their plans. When it ends, they compare a digest of what they decided, over a group of their
    own. Nothing is sent in between. Where a collective of the network fails, the error says which
    step another rank decided otherwise.

    Attributes:
        group: The ranks that share the sample.
        policies: The policies whose plans are compared.
        timeout: Seconds to wait for the slowest rank.
        ledger: Counts of what was sent.

    Raises:
        AgreementError: The ranks have other plans, or decided otherwise; names both.
    """

    traits = Traits(static=True)

    group: dist.ProcessGroup
    policies: tuple[Policy, ...]
    timeout: float = DEFAULT_TIMEOUT
    ledger: Ledger = dataclasses.field(default_factory=Ledger, repr=False)
    channel: Channel = dataclasses.field(default_factory=Channel, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"SamePlan(timeout={self.timeout}): it must be above 0 and finite")

    def __repr__(self) -> str:
        return f"SamePlan(group of {self.group.size()} ranks, timeout={self.timeout:g})"

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        session.state_of(self, Decisions)
        plan = describe_plans(self.policies, session.num_steps)
        check_start(session, plan, True, self.group, self.timeout, self.ledger)
        if self.channel.group is None:
            ranks = dist.get_process_group_ranks(self.group)
            self.channel.group = create_group(ranks, self.timeout, backend="gloo")

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        decisions = step.session.state_of(self, Decisions)
        # ranks that divide the branches have other calls, and need not decide alike
        if not step.session.divided:
            place = f"{call.model} {call.branch} {call.site.path}".strip()
            decisions.made[step.index, place] = name_decision(call)
        try:
            return (yield)
        except Exception as error:
            if call.compute.failure is not error or not is_lost_connection(error):
                raise
            where = f"at step {step.index} of request {step.session.request_id!r}"
            decisions.closed = True
            said = self._ask(decisions, where, min(self.timeout, JOIN))
            raise AgreementError(
                f"{where}: the network of rank {dist.get_rank()} waited for other ranks of its "
                f"group ({format_ranks(self.group)}) in vain: {said or shorten(error)}. If a "
                "policy is static in name only, remove Traits(static=True) from it; if a rank "
                "died, look at its log"
            ) from error

    @hookimpl
    def on_session_end(self, session: SessionInfo, error: BaseException | None) -> None:
        decisions = session.state_of(self, Decisions)
        if error is not None or decisions.closed or session.divided:
            return
        where = f"at the end of request {session.request_id!r}"
        if differ := self._exchange(decisions, where, self.timeout):
            raise AgreementError(
                f"{where}: {differ}, though all policies declare a static schedule "
                f"({', '.join(policy.name for policy in self.policies)}). Remove "
                "Traits(static=True) from the one that decides by what it measures; "
                "add_agreement then lets the ranks vote"
            )

    def _exchange(self, decisions: Decisions, where: str, timeout: float) -> str:
        """Where the ranks decided otherwise; empty if nowhere."""
        assert self.channel.group is not None
        texts = compare_texts(str(decisions), self.channel.group, timeout, where, self.ledger)
        return find_difference(texts, dist.get_process_group_ranks(self.group))

    def _ask(self, decisions: Decisions, where: str, timeout: float) -> str:
        """The same, where the others may be gone; empty if they do not answer."""
        try:
            return self._exchange(decisions, where, timeout)
        except AgreementError:
            return ""


def describe_plans(policies: Sequence[Policy], num_steps: int) -> str:
    """What static policies will do, in a text that is the same wherever they do the same.

    A policy that plans is its plan. Another that decides, or moves the interval, is its settings of
    plain types: objects and paths may be others on every rank.

    Example:
        >>> from erta_framework.budgets import ListedSteps
        >>> describe_plans([ListedSteps(steps=(0, 2))], 4)
        'listed_steps computes steps 0 2 of 4'
    """
    said = []
    for policy in policies:
        planner = as_planner(policy)
        if planner is None:
            if find_hooks(type(policy)) & set(STEERS):
                said.append(describe_settings(policy))
            continue
        try:
            plan = planner.plan(num_steps)
        except ErtaError as error:  # it refuses the request itself, on this rank
            said.append(f"{policy.name} has no plan for {num_steps} steps ({shorten(error)})")
            continue
        for branch, part in {"": plan, **plan.branches}.items():
            steps = " ".join(map(str, part.computed))
            of = f" in branch {branch}" if branch else ""
            said.append(f"{policy.name} computes steps {steps} of {num_steps}{of}")
    return "; ".join(said) or "every step is computed"


def describe_settings(policy: Policy) -> str:
    """The name of a policy and its settings of plain types."""
    plain = {
        each.name: getattr(policy, each.name)
        for each in dataclasses.fields(policy)
        if is_plain(getattr(policy, each.name))
    }
    return f"{policy.name}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def is_plain(value: Any) -> bool:
    """Whether a value means the same on every rank: a number, a choice, or several of them."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def name_decision(call: Call) -> str:
    """What was decided for a call, in a word; the samples where they differ."""
    if not isinstance(call.decision, Reuse):
        return "computed"
    if call.decision.mask is None:
        return "reused"
    return "reused for samples " + " ".join(
        str(row) for row, keep in enumerate(call.decision.mask) if keep
    )


def find_difference(texts: Sequence[str], ranks: Sequence[int]) -> str:
    """The first place where two ranks decided otherwise, and how; empty if nowhere."""
    first, *others = [
        {(index, place): what for index, place, what in json.loads(text)}
        for text in texts or ["[]"]
    ]
    for rank, other in zip(ranks[1:], others, strict=False):
        for index, place in sorted({*first, *other}):
            one, two = (made.get((index, place), "never reached") for made in (first, other))
            if one != two:
                return f"rank {ranks[0]} {one} and rank {rank} {two} at step {index} ({place})"
    return ""


def shorten(error: Exception) -> str:
    """The first line of an error, up to 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
