"""`DriftGate`: blocks whose input has hardly moved since they last ran are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cached_property
from itertools import groupby
from operator import attrgetter

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Action, Parts, Place, Select, Visit
from erta_policies.fastcache._group import BlockGroup
from erta_policies.fastcache._significance import (
    BETAS,
    AdaptiveTest,
    CalibratedTest,
    Freedom,
    Movement,
    Spread,
    Test,
    TestName,
    ThresholdTest,
)
from erta_policies.shared import (
    SURROGATES,
    ProfileSource,
    SurrogateName,
    SurrogateProfiler,
    SurrogateTable,
    check_ridge,
    load_profile,
)


class DriftGate(Policy):
    """Replaces every block whose input has hardly moved since the block last ran.

    The block-level half of FastCache, arXiv 2505.20353. Of each block the input H' and what the
    block added to it, R, are kept from the step at which it last ran, and not from the last step.
    Where the input H is close to H', the block does not run, and a surrogate stands in:

    * `residual`: H + R
    * `affine`: H + a R + b, with a line for each channel
    * `ridge`: H + R + (H - H') A, with A fitted by ridge regression

    The first and the last step run all blocks, as does a change of shape. Blocks with two streams,
    of image and text, decide on the first one among their arguments, which is the image, and
    replace both.

    Published are the drift per block, the linear replacement, alpha, the betas and 0.05; the fit
    of the linear maps was not released, and the chi-square test as published accepts everything.
    Ours are H' of the last computed step, the surrogates on top of the residual and their fit, the
    `calibrated` test, the limit of consecutive reuse and the accumulated drift.

    Attributes:
        blocks: Which blocks; by default all of the trunk.
        test: `threshold` compares the drift with `threshold`; `calibrated` the movement with that
            of calibration runs; `adaptive` the drift with the published formula.
        threshold: Largest relative drift; 0 or less never reuses.
        most: Steps after which a block runs again.
        accumulate: Whether the drifts of consecutive reuses add up against the threshold.
        per_sample: Whether every sample decides for itself, and a block runs on those that need
            it. Else it runs on all of them where one needs it.
        group: Blocks in a row that share a decision, which keep what one block would.
        surrogate: What stands in for a block.
        profile: From `SurrogateProfiler`: for `affine`, `ridge`, and the `calibrated` test.
        ridge: Penalty of the ridge fit, relative to the mean square of a channel.
        rank: Largest rank of A; None for no limit.
        level: Alpha of the `calibrated` test.
        quantile: The quantile of movement that it takes for that of an unchanged input.
        freedom: What it counts as a degree of freedom.
        betas: Coefficients of the `adaptive` test.
        floor: Its least threshold.
        spread: What S is in it.
        allow: Fields of the profile's fingerprint that may differ from the run's.

    Raises:
        PolicyError: A setting is out of range, or excludes another.
        ProfileError: The profile has no sums of a block; at the first step.
        CapabilityError: At attach, where there are no such blocks; in the first step, where
            outputs of a block do not continue its inputs, or it cannot run on some samples.

    Example:
        >>> DriftGate(threshold=0.1).most
        3
    """

    blocks: Select = field(default_factory=lambda: Select(kind=("block",)))
    test: TestName = "threshold"
    threshold: float = 0.05
    most: int = 3
    accumulate: bool = False
    per_sample: bool = True
    group: int = 1
    surrogate: SurrogateName = "residual"
    profile: ProfileSource | None = None
    ridge: float = 1e-3
    rank: int | None = None
    level: float = 0.05
    quantile: float = 0.1
    freedom: Freedom = "tokens"
    betas: tuple[float, float, float, float] = BETAS
    floor: float = 0.0
    spread: Spread = "drift"
    allow: tuple[str, ...] = ()

    traits = Traits(seams=frozenset({Seam.MODULE}), agrees_inside=True)

    def __post_init__(self) -> None:
        if self.blocks.kind != ("block",) or self.blocks.span:
            raise PolicyError(f"DriftGate replaces single blocks, and not {self.blocks}")
        if self.surrogate not in SURROGATES:
            raise PolicyError(
                f"surrogate is {self.surrogate!r}; give one of {', '.join(SURROGATES)}"
            )
        if self.most < 1 or self.group < 1:
            raise PolicyError(
                f"DriftGate has most={self.most} and group={self.group}; both must be at least 1"
            )
        if self.group > 1 and (self.per_sample or self.surrogate != "residual"):
            raise PolicyError(
                f"a group of {self.group} blocks decides for all samples and reuses its residual; "
                "give per_sample=False and surrogate='residual' with it"
            )
        check_ridge(self.ridge, self.rank)
        self._make_test(SurrogateTable(None, "residual", self.ridge, self.rank))
        needed = self.surrogate != "residual" or self.test == "calibrated"
        if needed is (self.profile is None):
            raise PolicyError(
                f"DriftGate got profile={self.profile!r} with surrogate={self.surrogate!r} and "
                f"test={self.test!r}; affine, ridge and calibrated need one from "
                "`erta calibrate` or Sampler.calibrate, the others use none"
            )

    @property
    def selects(self) -> Sequence[Select]:
        """The blocks."""
        return (self.blocks,)

    @cached_property
    def table(self) -> SurrogateTable:
        """The surrogates, and the profile that they are fitted to."""
        kinds = (SurrogateProfiler.kind,)
        profile = None if self.profile is None else load_profile(self, self.profile, kinds)
        return SurrogateTable(profile, self.surrogate, self.ridge, self.rank)

    @cached_property
    def tests(self) -> Test:
        """The test that decides."""
        return self._make_test(self.table)

    def _make_test(self, table: SurrogateTable) -> Test:
        """The test that is asked for.

        Raises:
            PolicyError: There is no such test, or a setting of it is out of range.
        """
        known: dict[str, Test] = {
            "threshold": ThresholdTest(self.threshold),
            "calibrated": CalibratedTest(table, self.level, self.quantile, self.freedom),
            "adaptive": AdaptiveTest(self.betas, self.floor, self.spread),
        }
        if self.test not in known:
            raise PolicyError(f"test is {self.test!r}; give one of {', '.join(known)}")
        return known[self.test]

    # ---------------------------------------------------------------------------- hooks
    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        self.table.require(session, self.allow)

    def keeps_inputs(self) -> bool:
        """An input is kept beside what was made of it."""
        return True

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        if step.index == step.num_steps - 1 and call.kept(call.sites[-1]):
            return {}  # all run, and nobody needs what they would keep
        plan: dict[Place, Action] = {}
        for places in self._list_groups(call.sites):
            plan.update(BlockGroup(places, self.table, self.decide_reuse).plan())
        return plan

    def _list_groups(self, places: Sequence[Place]) -> Sequence[Sequence[Place]]:
        """The blocks that share a decision; none are of two lists."""
        runs = [tuple(run) for _, run in groupby(places, attrgetter("stack"))]
        size = self.group
        return [run[k : k + size] for run in runs for k in range(0, len(run), size)]

    # ------------------------------------------------------------------------- decision
    def decide_reuse(self, group: BlockGroup, visit: Visit) -> Sequence[bool]:
        """Of each sample of the call, whether the blocks of a group are replaced."""
        call, index, path = visit.call, visit.step.index, visit.place.path
        features, rows = call.features(group.last), visit.rows
        if not features:
            self._check_block(visit)
            return [False] * len(rows)
        streams = visit.continued
        lead = next(name for name in group.entered if name in streams)
        stream = list(streams).index(lead)
        now, kept = streams[lead], features[stream]
        young = [index - stamp[0] <= self.most for stamp in call.stamps(group.last)[0]]
        held = visit.state_of(self, dict[int, float])
        if now.shape != kept.shape or not (any(young) if self.per_sample else all(young)):
            held.update(dict.fromkeys(rows, 0.0))
            return [False] * len(rows)
        progress = index / max(1, visit.step.num_steps - 1)
        moved = self.tests(Movement(now, kept, path, stream, progress))
        each = self.per_sample
        values = visit.agree_each(moved) if each else [visit.agree(moved)] * len(rows)
        return self._judge(held, rows, values, young)

    def _check_block(self, visit: Visit) -> None:
        """Refuse a block that the profile does not know, or that samples cannot share."""
        if self.table.profile is not None:
            self.table.find_row(visit.place.path)
        if self.per_sample and len(visit.rows) > 1:
            try:
                visit.require_rows()
            except CapabilityError as error:
                raise CapabilityError(f"{error}: give {self.name} per_sample=False") from None

    def _judge(
        self,
        held: dict[int, float],
        rows: Sequence[int],
        values: Sequence[float],
        young: Sequence[bool],
    ) -> Sequence[bool]:
        """Which samples are within the bound, with what they have moved before if that counts."""
        totals = [held.get(row, 0.0) + value for row, value in zip(rows, values, strict=True)]
        reuse = [y and total <= 1.0 for y, total in zip(young, totals, strict=True)]
        if not self.per_sample:
            reuse = [all(reuse)] * len(reuse)
        if self.accumulate:
            held.update(
                (row, total if reused else 0.0)
                for row, total, reused in zip(rows, totals, reuse, strict=True)
            )
        return reuse
