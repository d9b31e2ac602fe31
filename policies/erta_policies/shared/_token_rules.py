"""`TokenRule`: the base of rules that reuse keys and values by position."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from erta_framework import Policy, Reuse, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.session import PREFIX, Call

TOKENS: frozenset[Literal["latents", "tokens"]] = frozenset({"tokens"})
"""What rules for masked language models serve."""
Restart = Literal["block", "request"]


class TokenRule(Policy):
    """Base of rules for masked language models; a rule says which positions are reused.

    What a rule wants to reuse and what is not held, or is of a token that was edited since, runs
    all the same: the driver sees to that.

    Source: ours.
    """

    signals: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def traits(self) -> Traits:
        """Serves tokens; requires its `signals` and the capabilities in `needs`."""
        named = {PREFIX + name for name in self.signals}
        return Traits(serves=TOKENS, requires=frozenset(named | set(self.needs)))

    @abstractmethod
    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """The positions whose keys and values are reused, `[B, L]` booleans."""

    def name_reason(self) -> str:
        """A few words for the trace."""
        return self.name

    @hookimpl
    def decide(self, step: Step, call: Call) -> Reuse:
        return Reuse(self.name_reason(), positions=self.choose_reused(step, call))


def find_full(
    step: Step, call: Call, *, refresh: int | None, first: int, restart: Restart
) -> Tensor:
    """Which samples run on every position in this step, `[B]` booleans.

    Args:
        step: The step.
        call: The call, whose driver offers `block_step`.
        refresh: Every so many steps; None never.
        first: As many steps at the start.
        restart: What steps are counted from.
    """
    count = call.feature("block_step")
    if restart == "request":
        count = torch.full_like(count, step.index)
    full = count < first
    return full if refresh is None else full | (count % refresh == 0)


def check_at_least(policy: Policy, least: int, **values: int | None) -> None:
    """Refuse settings below `least`; None passes.

    Raises:
        PolicyError: Names the setting and the policy.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise PolicyError(
                f"{name} of {type(policy).__name__} is {value}, it must be at least {least}"
            )
