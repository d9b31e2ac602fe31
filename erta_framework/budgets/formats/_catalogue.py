"""The installed formats by name, and files of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from erta_framework.budgets.formats._document import ScheduleDocument
from erta_framework.budgets.formats._format import ScheduleFormat
from erta_framework.errors import InputError, suggest
from erta_framework.plugins import Catalogue
from erta_framework.text import show_value


def schedule_formats(only: Collection[str] | None = None) -> Catalogue:
    """The catalogue of formats (`erta_framework.schedule_formats`)."""
    return Catalogue("erta_framework.schedule_formats", check_format, only)


def check_format(loaded: object) -> str | None:
    """What is wrong with an entry that is no format."""
    if isinstance(loaded, type) and issubclass(loaded, ScheduleFormat):
        return None
    return f"is {show_value(loaded)}, not a subclass of ScheduleFormat"


def load_format(name: str, what: str = "format of schedules") -> ScheduleFormat:
    """One format.

    Args:
        name: Its name.
        what: What is wanted, for the message.

    Raises:
        InputError: There is none of this name; lists those that there are.
        RegistryError: It cannot be imported.
    """
    catalogue = schedule_formats()
    known = catalogue.names()
    if name not in known:
        raise InputError(f"no {what} {show_value(name)}; {suggest(name, known)}")
    found: ScheduleFormat = catalogue.load(name)()
    return found


def read_schedule(
    path: str | Path, form: str, num_steps: int | None = None, **options: Any
) -> ScheduleDocument:
    """A schedule file of another project, or of ours.

    Args:
        path: The file.
        form: Name of its format; see `erta schedule formats`.
        num_steps: Steps of the schedule, where the file does not say them.
        options: Settings of the format.

    Raises:
        InputError: The format is unknown, or the file is none of it; names file and place.
        ConfigError: A value of it is of the wrong type, or a setting is unknown.

    Example:
        >>> read_schedule("lemica.json", "steps", 50).as_one("a list").calls  # doctest: +SKIP
        14
    """
    return load_format(form).read(Path(path), num_steps, options)


def write_schedule(document: ScheduleDocument, form: str, **options: Any) -> str:
    """The text of a schedule file.

    Args:
        document: What `read_schedule` gave, or `ScheduleDocument.of(schedule)`.
        form: Name of a format.
        options: Settings of the format.

    Raises:
        InputError: The format is unknown, or cannot say this schedule.

    Example:
        >>> from erta_framework.budgets import StepSchedule
        >>> write_schedule(ScheduleDocument.of(StepSchedule.of({2}, 4)), "sglang").split()[:2]
        ['SGLANG_CACHE_DIT_SCM_COMPUTE_BINS=1,1', 'SGLANG_CACHE_DIT_SCM_CACHE_BINS=1,1']
    """
    return load_format(form).write(document, options)


def list_formats() -> Mapping[str, type[ScheduleFormat]]:
    """The installed formats by name.

    Raises:
        RegistryError: One cannot be imported.
    """
    catalogue = schedule_formats()
    return {name: catalogue.load(name) for name in catalogue.names()}
