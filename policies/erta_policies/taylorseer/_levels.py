"""Where TaylorSeer, HiCache and FORA keep outputs: of the network, or of modules inside of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_policies.at import At
from erta_policies.forecast import Forecaster
from erta_policies.shared import BudgetedRecipe
from erta_policies.taylorseer._schedule import Counting, RefreshInterval

Level = Literal["output", "modules"]

PUBLISHED = Select(kind=("attention", "cross", "mlp"))
"""What the papers keep: the outputs of attention, cross-attention and MLP, in front of the gate."""


class LevelRecipe(BudgetedRecipe):
    """Base of recipes of a schedule and a forecast, on whole outputs or on those of modules.

    A subclass is done with `_settle` in `__post_init__`, and gives its parts from `_place`.

    Source: ours.

    Attributes:
        interval: A computed step and so many less one that are predicted.
        budget: Instead of `interval`, at level `output`: `calls` or `speedup`.
        level: `output` keeps one output of the network, and leaves the network out; `modules` keeps
            one of each module, as published, and the rest of the network runs at every step.
        sites: At level `modules`, which; every attention, cross-attention and MLP unless given.

    Raises:
        PolicyError: A setting does not belong to the level.
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("interval",)

    interval: int | None = None
    level: Level = "output"
    sites: Select | None = None

    def _settle(self) -> None:
        """Read a written budget, and refuse what does not belong to the level.

        Raises:
            PolicyError: Names the setting.
        """
        self._settle_budget()
        name = type(self).__name__
        if self.level not in ("output", "modules"):
            raise PolicyError(f"{name} has no level {self.level!r}; it is 'output' or 'modules'")
        if self.level == "output" and self.sites is not None:
            raise PolicyError(
                f"{name} got sites={self.sites!r} at level 'output', where the whole network is "
                "one place; give level='modules'"
            )
        if self.level == "modules" and self.budget is not None:
            raise PolicyError(
                f"{name} got budget={self.budget} at level 'modules', where the network is called "
                "at every step; give interval"
            )
        self.parts()

    def _refresh(self, interval: int, first: int, counting: Counting) -> RefreshInterval:
        """Its schedule: of its budget, else its interval, else this one."""
        if self.budget is None and self.interval is None:
            return RefreshInterval(interval=interval, first=first, counting=counting)
        return RefreshInterval(
            interval=self.interval, budget=self.budget, first=first, counting=counting
        )

    def _place(self, when: RefreshInterval, what: Forecaster) -> Sequence[Policy]:
        """The parts: a schedule and a forecast, at the level of the recipe."""
        if self.level == "output":
            return (when, what)
        return (At(sites=self.sites or PUBLISHED, when=when, what=what),)
