"""`FEBCache`: the paper as a recipe of a table and a scale of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from erta_framework import Policy, Profiler
from erta_policies.febcache._policy import ModuleTable
from erta_policies.noise_scale import NoiseScale
from erta_policies.shared import ProfileSource


class FEBCache(Policy):
    """FEB-Cache (arXiv 2503.07120): attention and MLPs on steps of their own, with scaled noise.

    Stands for a `ModuleTable` and a `NoiseScale`. The table says for each step whether nothing, the
    attention, the MLPs or both are reused, the same in all blocks and branches. The scale
    multiplies the guided noise by the paper's b(t) at every step, computed ones as well.

    The repository divides by 0.965 where the paper multiplies by b(t) < 1; the direction here is
    the paper's. `noise: null` leaves the noise alone.

    Source: FEB-Cache, arXiv 2503.07120; aSleepyTree/EB-Cache for the table and the depth window.
    What of the calibration is ours stands at `FEBCacheProfiler`.

    Attributes:
        table: A letter for each step (`N`, `B`, `A`, `M`), or `"published"`, for 50 steps.
        profile: File or profile of a `FEBCacheProfiler`, instead of a table.
        window: How many blocks may reuse; see `ModuleTable`.
        noise: The scale of the noise; None for none.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `table` and `profile` is given, or the table cannot be read.

    Example:
        >>> [part.name for part in FEBCache(table="published").parts()]
        ['module_table', 'noise_scale']
    """

    table: str | None = None
    profile: ProfileSource | None = None
    window: int | None = None
    noise: NoiseScale | None = field(default_factory=NoiseScale)
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._table()

    def calibrator(self) -> Profiler | None:
        return self._table().calibrator()

    def parts(self) -> Sequence[Policy]:
        noise = () if self.noise is None else (self.noise,)
        return (self._table(), *noise)

    def _table(self) -> ModuleTable:
        return ModuleTable(
            table=self.table, profile=self.profile, window=self.window, allow=self.allow
        )
