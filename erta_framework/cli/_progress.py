"""One progress bar over several runs."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from erta_framework.console import make_console
from erta_framework.sampling import Callback
from erta_framework.session import StepTrace


class OverallProgress(Callback):
    """A progress bar over the steps of several runs; a context manager.

    Args:
        total: Steps of all runs together; None where they are not known.
        title: What runs.
        console: Where to show it; by default the standard error.
    """

    def __init__(self, total: int | None, title: str, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or make_console(stderr=True),
        )
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> OverallProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_step(self, step: StepTrace) -> None:
        """Advance by one step."""
        self._progress.update(self._task, advance=1)
