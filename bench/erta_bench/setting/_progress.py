"""One progress bar over all runs of a benchmark."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from erta_framework.sampling import Callback
from erta_framework.session import StepTrace


class RunProgress(Callback):
    """A progress bar over all runs; it advances with every computed step.

    Args:
        total: Computed steps of all runs together.
        console: Where to show the bar; None shows none.
    """

    def __init__(self, total: int, console: Console | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(quiet=True),
        )
        self._task: TaskID = self._progress.add_task("", total=total)

    def __enter__(self) -> RunProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def set_title(self, text: str) -> None:
        """Say what runs now."""
        self._progress.update(self._task, description=f"{text:40.40}")

    def on_step(self, step: StepTrace) -> None:
        """Advance where the network ran."""
        self._progress.update(self._task, advance=int(step.computed))
