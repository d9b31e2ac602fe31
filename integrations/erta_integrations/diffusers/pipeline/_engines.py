"""The engine of each request: that of the attachment, or another with the budget of its tier."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from erta_framework import Engine, Policy
from erta_framework.budgets import Tier, plan_tier
from erta_framework.errors import InputError

log = logging.getLogger(__name__)

Rechoose = Callable[[int | None, Mapping[str, Any]], Sequence[Policy]]
"""Chooses policies for a number of steps and a budget, where nobody named any."""

# of all attachments, by id: a context variable of each would never be freed
_TIERS: ContextVar[Mapping[int, Tier]] = ContextVar("erta_tiers", default=MappingProxyType({}))


class RequestEngines:
    """Finds the engine of a request.

    Args:
        engine: That of the attachment.
        rechoose: Chooses policies again, if they were chosen and not named.
    """

    def __init__(self, engine: Engine, rechoose: Rechoose | None = None) -> None:
        self.engine, self._rechoose = engine, rechoose
        self._by_steps: dict[Any, Engine] = {}
        self._by_tier: dict[tuple[Any, ...], tuple[Tier, Engine | None]] = {}

    @property
    def tier(self) -> Tier | None:
        """The tier that the caller's next request has; None where it is the attachment's."""
        return _TIERS.get().get(id(self))

    @contextmanager
    def using(self, budget: Mapping[str, Any], measured: bool) -> Iterator[Tier]:
        """Give the requests of this context a budget of their own.

        Raises:
            InputError: No budget is given, or places inside the networks are owned.
            PolicyError: No policy takes the budget.
            ProfileError: It is out of reach, or was not measured.
        """
        tier, _ = self._find_tier(budget, measured)
        before = _TIERS.get()
        token = _TIERS.set({**before, id(self): tier})
        try:
            yield tier
        finally:
            _TIERS.reset(token)

    def _find_tier(self, budget: Mapping[str, Any], measured: bool) -> tuple[Tier, Engine | None]:
        if not budget:
            raise InputError("using() got no budget; give one, as in using(speedup=3)")
        key = (*budget.items(), measured)
        if key not in self._by_tier:
            if self.engine.selecting:
                names = ", ".join(policy.name for policy in self.engine.selecting)
                raise InputError(
                    f"{names} own places inside the networks, whose plan is the same for all "
                    "requests; attach again with the other budget"
                )
            if self._rechoose is not None and not measured:
                self._by_tier[key] = Tier(dict(budget), tuple(self._rechoose(None, budget))), None
            else:
                tier = plan_tier(self.engine.listed, budget, measured=measured)
                self._by_tier[key] = tier, Engine(tier.policies)
            log.info("tier %s", self._by_tier[key][0].describe())
        return self._by_tier[key]

    def find(self, tier: Tier | None, num_steps: int) -> Engine:
        """The engine of a request that runs so many steps.

        Raises:
            ErtaError: Nothing can be chosen for so many steps.
        """
        if tier is not None and self._rechoose is None:
            return next(e for t, e in self._by_tier.values() if t is tier and e is not None)
        if self._rechoose is None:
            return self.engine
        key = (num_steps, *(() if tier is None else tier.budget.items()))
        if key not in self._by_steps:
            chosen = self._rechoose(num_steps, {} if tier is None else tier.budget)
            same = list(map(repr, chosen)) == list(map(repr, self.engine.listed))
            self._by_steps[key] = self.engine if same else Engine(chosen)
            if not same:
                log.info("requests of %d steps: %s", num_steps, ", ".join(map(repr, chosen)))
        return self._by_steps[key]
