"""`ModuleTable`: attention and MLPs are reused at the steps of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from erta_framework import Policy, Profiler, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import KEEP, Action, Parts, Place, ReuseKept
from erta_policies.febcache._profiler import SITES, FEBCacheProfiler
from erta_policies.febcache._statistics import KIND, read_table
from erta_policies.febcache._table import PUBLISHED, StateTable
from erta_policies.shared import ProfileSource, load_profile, require_match, require_one_option

REUSE: Final = ReuseKept()
EARLY: Final = 0.6
"""The part of the run in which the depth window holds the last blocks; later the first."""


class ModuleTable(Policy):
    """Reuses the attention, the MLPs or both at the steps of a table.

    A module runs if it has not run since the last step at which the table lets it, so that a rule
    that leaves out steps can stand beside it. What is reused is the output of the module itself,
    before the block's gate: gates are those of the current step.

    Source: FEB-Cache, arXiv 2503.07120, and its repository aSleepyTree/EB-Cache (the depth window).
    Counting cross-attention as attention is ours.

    Attributes:
        table: A letter for each step (`N` nothing is reused, `B` both, `A` the attention, `M` the
            MLPs), or `"published"`, for 50 steps.
        profile: File or profile of a `FEBCacheProfiler`, instead of a table.
        window: How many blocks may reuse: the last ones in the first 60 % of the run, the first
            ones later. None lets all.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `table` and `profile` is given, or the table cannot be read.

    Example:
        >>> ModuleTable(table="published").find_table().count("B")
        16
    """

    table: str | None = None
    profile: ProfileSource | None = None
    window: int | None = None
    allow: tuple[str, ...] = ()

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))
    selects = SITES

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise PolicyError(f"window of {self.name} is {self.window}, it must be at least 1")
        if self.table is not None:
            self._read()

    def calibrator(self) -> Profiler | None:
        return None if self.table is not None else FEBCacheProfiler()

    def prepare(self) -> None:
        options = ('table="published"', "profile=<file>")
        require_one_option(self, self.name, options, "neither table nor profile")
        self.find_table()

    def find_table(self) -> StateTable:
        """The table, read from the profile if need be.

        Raises:
            PolicyError: There is neither.
            ProfileError: The profile cannot be read, or another profiler emitted it.
        """
        if self.table is not None:
            return self._read()
        return read_table(load_profile(self, self.profile, (KIND,)))

    def _read(self) -> StateTable:
        assert self.table is not None
        return PUBLISHED if self.table == "published" else StateTable(self.table)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.profile is not None:
            require_match(load_profile(self, self.profile, (KIND,)), session, self.allow)
        table = self.find_table()
        table.attention.require_steps(session.num_steps, repr(self))
        newest = {"mlp": table.mlp.newest, "attention": table.attention.newest}
        session.state_of(self, lambda: newest)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        newest: Mapping[str, tuple[int, ...]] = step.session.state_of(self, dict)
        late = step.index >= EARLY * step.num_steps
        depth = 1 + max(place.depth for place in call.sites)
        plan: dict[Place, Action] = {}
        for place in call.sites:
            age = call.age(place)
            runs = newest["mlp" if place.kind == "mlp" else "attention"][step.index]
            due = age is None or step.index - age < runs
            plan[place] = KEEP if due or self._is_outside(place.depth, depth, late) else REUSE
        return plan

    def _is_outside(self, place: int, depth: int, late: bool) -> bool:
        """Whether a block of this depth must not reuse now."""
        if self.window is None:
            return False
        return place >= self.window if late else place < depth - self.window
