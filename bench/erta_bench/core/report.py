"""What a benchmark returns: flat records, as a table for people and as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from erta_framework.console import make_console
from erta_framework.environment import collect_versions, describe_machine
from erta_framework.files import write_atomically

Value = str | int | float | bool | None
Row = Mapping[str, Value]
"""One flat record; common keys are `name, calls, steps, seconds, speedup, psnr_mean, psnr_std,
ssim_mean, seeds, prompts`."""
CLOCK = "by processor seconds, which other programs on the machine disturb less than wall seconds"
WALL = "by wall seconds, since an accelerator computes"
"""Said below a table with such a column."""
PROCESSOR = "processor_"
"""How the keys of processor seconds begin; without it they are those of wall seconds."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A finished benchmark.

    Attributes:
        command: What was run, such as `"erta bench ablation --prompts 32"`.
        rows: Flat records; every value is a string, a number, a truth value or None.
        columns: Keys shown in the table, with their headings; the JSON holds every key.
        settings: What all rows share, such as the model's fingerprint and the solver.
        section: Key whose change draws a line between rows of the table.
        versions: Versions of the packages that matter.
        machine: What it ran on.
        date: Day, in UTC.

    Example:
        >>> Bench("demo", [{"name": "full", "calls": 50}], {"name": "run"}).record()["rows"]
        [{'name': 'full', 'calls': 50}]
    """

    command: str
    rows: Sequence[Row]
    columns: Mapping[str, str]
    settings: Mapping[str, Value] = field(default_factory=dict)
    section: str = ""
    versions: Mapping[str, str] = field(default_factory=collect_versions)
    machine: Mapping[str, Value] = field(default_factory=describe_machine)
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def record(self) -> dict[str, object]:
        """The whole benchmark as plain values."""
        return {
            "command": self.command,
            "date": self.date,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "rows": [dict(row) for row in self.rows],
        }

    def write(self, path: str | Path) -> Path:
        """Write the record as JSON.

        Raises:
            ValueError: A value is NaN, which no JSON reader has to accept.
        """
        path = Path(path)
        text = json.dumps(self.record(), indent=2, allow_nan=False)
        write_atomically(path, (text + "\n").encode())
        return path

    def table(self) -> Table:
        """The rows as a table; keys that a row lacks stay empty."""
        table = Table(title=self.command, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
        rows = choose_clock(self.rows, self.machine)
        for key, heading in self.columns.items():
            number = any(isinstance(row.get(key), int | float) for row in rows)
            table.add_column(heading, justify="right" if number else "left", no_wrap=number)
        before: Value = None
        for row in rows:
            if row.get(self.section) != before:
                table.add_section()
            before = row.get(self.section)
            table.add_row(*(format_value(row.get(key)) for key in self.columns))
        return table

    def show(self, console: Console | None = None, path: str | Path | None = None) -> None:
        """Print the table, and write the JSON file if one is named."""
        console = console or make_console()
        console.print(self.table())
        if "processor_speedup" in self.columns:
            clock = CLOCK if self.machine.get("accelerator") is None else WALL
            console.print(f"{self.columns['processor_speedup']}: {clock}", highlight=False)
        if path is not None:
            console.print(f"wrote {self.write(path)}", highlight=False)


def choose_clock(rows: Sequence[Row], machine: Mapping[str, Value]) -> Sequence[Row]:
    """The rows as they are shown: wall seconds where an accelerator computes.

    The processor only waits for it, so its seconds say nothing of the work.

    Example:
        >>> choose_clock([{"speedup": 2.0, "processor_speedup": 1.1}], {"accelerator": "H200"})
        [{'speedup': 2.0, 'processor_speedup': 2.0}]
    """
    if machine.get("accelerator") is None:
        return rows
    return [
        {key: row.get(key.removeprefix(PROCESSOR), value) for key, value in row.items()}
        for row in rows
    ]


def format_value(value: Value) -> str:
    """A value as the table shows it: floats with a sensible number of digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.0f}" if size >= 1000 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"
    return str(value)
