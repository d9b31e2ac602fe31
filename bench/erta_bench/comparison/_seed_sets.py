"""Prepares the rows of a comparison, and runs them once for each seed set."""

from __future__ import annotations

from dataclasses import dataclass, field

from erta_bench.comparison._contender import Contender
from erta_bench.comparison._memory import MemoryMeter
from erta_bench.comparison._preparation import Preparation
from erta_bench.comparison._rows import ContenderRow, make_contender_record, make_full_record
from erta_bench.comparison._runner import Prepared, RunResult
from erta_bench.core import Row, Value
from erta_bench.other_caches import RIVALS
from erta_bench.setting import ExactSolutions, RunProgress, Setting, describe_setting
from erta_framework.errors import BudgetError
from erta_framework.optional_dependencies import MissingExtraError


@dataclass(slots=True)
class Comparison:
    """The rows of a comparison, and what they measured so far.

    Attributes:
        setting: Model, prompts and what else all rows share.
        preparation: Prepares and runs the rows.
        rows: The rows.
        solutions: How exact the exact solutions are.
        seed: First seed.
        full: The full run.
    """

    setting: Setting
    preparation: Preparation
    rows: list[ContenderRow]
    solutions: ExactSolutions
    seed: int
    full: ContenderRow = field(init=False)

    def __post_init__(self) -> None:
        self.full = ContenderRow(Contender(name="full", group="plain"), self.setting.steps)

    def count_steps(self, seeds: int) -> int:
        """Computed steps of all runs, roughly, for a progress bar."""
        of_rows = sum(row.budget for row in self.rows)
        return seeds * self.setting.batches * (2 * self.setting.steps + of_rows)

    def prepare(self, bar: RunProgress) -> None:
        """Calibrate, search and weigh; what cannot be done is the row's status."""
        meter = MemoryMeter(self.preparation.runner, self.setting.calibration[:1])
        for row in self.rows:
            bar.set_title(f"{row.budget} calls, solving: {row.contender.name}")
            prepare_row(self.preparation, meter, row)

    def run_seed_set(self, bar: RunProgress, seed: int, *, backwards: bool) -> None:
        """Run everything once, from noise of this seed on; the full run first and last.

        All rows are compared with one full run and one exact solution.
        """
        runner, held_out = self.preparation.runner, self.setting.held_out
        plain = Prepared(self.full.contender, self.setting.steps)
        bar.set_title("full")
        reference = runner.run(plain, held_out, seed, [bar])
        bar.set_title("exact solution")
        solution = runner.solve(held_out, seed, self.solutions.substeps)
        self.solutions.add(solution)
        exact = solution.samples
        self.full.add(reference, reference, exact, runner.through)
        # another order each time, so that no row always runs on a warmer or busier machine
        for row in self.rows[:: -1 if backwards else 1]:
            if row.prepared is None or (row.contender.oracle and row.outcome.fine):
                continue  # what is fitted to the measured samples has one batch, for its price
            bar.set_title(f"{row.budget} calls: {row.contender.name}")
            try:
                result = self._run(row, bar, seed)
            except Exception as error:  # whatever another project's code raises is the status
                row.fail(error)
                continue
            row.add(result, reference, exact, runner.through)
        bar.set_title("full, again")
        # every speed-up is relative to it, and the machine may have slowed since
        again = runner.run(plain, held_out, seed, [bar])
        self.full.outcome.add_time(again.samples, again.processor)

    def _run(self, row: ContenderRow, bar: RunProgress, seed: int) -> RunResult:
        """Run a row; with the least work that it can do, where it says only now that it can't."""
        preparation, prompts = self.preparation, self.setting.held_out
        assert row.prepared is not None
        if row.contender.oracle:
            prompts = prompts[: self.setting.batch_size]
            row.prepared = preparation.prepare_oracle(row.contender, row.budget, prompts, seed)
        try:
            return preparation.runner.run(row.prepared, prompts, seed, [bar])
        except BudgetError as error:  # where the meter did not have to run it at this budget
            row.prepared = preparation.prepare(row.contender, error.least)
            return preparation.runner.run(row.prepared, prompts, seed, [bar])

    def list_records(self, unfinished: str = "") -> list[Row]:
        """The records of all rows, the full run first.

        Args:
            unfinished: Why they are not whole; every row is then marked.
        """
        found = [make_full_record(self.full, self.setting.steps)]
        found += [make_contender_record(row, self.full, self.preparation) for row in self.rows]
        if not unfinished:
            return found
        return [{**row, "status": "unfinished", "detail": unfinished} for row in found]

    def describe(self) -> dict[str, Value]:
        """What all rows share, for a record."""
        runner = self.preparation.runner
        known = list(self.preparation.profiles.values())[:1]
        return {
            **describe_setting(self.setting, self.seed, known),
            "model": runner.through.name,
            "pipeline": runner.through.pipeline,
            "scheduler": runner.scheduler,
            "solving_samples": self.preparation.search_prompts,
            **self.solutions.describe(),
        }


def prepare_row(preparation: Preparation, meter: MemoryMeter, row: ContenderRow) -> None:
    """Calibrate, search and weigh; what cannot be done is the row's status.

    A contender that cannot do so little work gets the least that it can do, as a search would.
    """
    rival = row.contender.rival
    try:
        if rival and RIVALS[rival].absence:
            raise MissingExtraError(RIVALS[rival].absence)
        if row.contender.oracle:  # prepared when its samples are known
            row.prepared = Prepared(row.contender, row.budget)
            return
        try:
            row.prepared = preparation.prepare(row.contender, row.budget)
            row.bytes_held = meter.measure(row.prepared)
        except BudgetError as error:
            row.prepared = preparation.prepare(row.contender, error.least)
            row.bytes_held = meter.measure(row.prepared)
    except Exception as error:  # whatever another project's code raises becomes the row's status
        row.fail(error)
