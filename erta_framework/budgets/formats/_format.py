"""`ScheduleFormat`: how a schedule is read and written in the words of one project."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from erta_framework.budgets.formats._document import ScheduleDocument
from erta_framework.budgets.formats._reading import parse_data, read_text
from erta_framework.errors import ConfigError, InputError
from erta_framework.text import escape_line


class ScheduleFormat(ABC):
    """One format of schedule files; a subclass says how it is parsed and what is written.

    Formats are named in the entry-point group `erta_framework.schedule_formats`. They read data
    and never code.

    Attributes:
        title: What the format is, in a line.
        keeps: Names in `ScheduleDocument.own` that it writes again.
        read_options: Names of the settings that reading takes.
        write_options: Names of the settings that writing takes.
    """

    title: ClassVar[str]
    keeps: ClassVar[tuple[str, ...]] = ()
    read_options: ClassVar[tuple[str, ...]] = ()
    write_options: ClassVar[tuple[str, ...]] = ()

    def read(
        self, path: Path, num_steps: int | None = None, options: Mapping[str, Any] | None = None
    ) -> ScheduleDocument:
        """A schedule file.

        Args:
            path: The file.
            num_steps: Steps of the schedule, where the file does not say them.
            options: Settings of `read_options`.

        Raises:
            InputError: It cannot be read, or says something that is no schedule; names the place.
            ConfigError: A value of it is of the wrong type.
        """
        return self.parse(
            parse_data(read_text(path), escape_line(path)),
            escape_line(path),
            num_steps,
            self._check(options, self.read_options, "read"),
        )

    def write(self, document: ScheduleDocument, options: Mapping[str, Any] | None = None) -> str:
        """The text of a schedule file.

        Raises:
            InputError: The format cannot say this schedule.
        """
        found = self.settings(document, self._check(options, self.write_options, "write"))
        return json.dumps(found, indent=2) + "\n"

    def _check(
        self, options: Mapping[str, Any] | None, known: tuple[str, ...], verb: str
    ) -> Mapping[str, Any]:
        unknown = sorted(set(options or {}) - set(known))
        if unknown:
            raise ConfigError(
                f"{self.title}: {', '.join(map(escape_line, unknown))} is no setting to {verb} it "
                f"with; there are: {', '.join(known) or 'none'}"
            )
        return options or {}

    @abstractmethod
    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        """The document that parsed JSON says.

        Args:
            data: What the JSON holds.
            where: The file, for messages.
            num_steps: Steps of the schedule, where the file does not say them.
            options: Settings of `read_options`.

        Raises:
            InputError: It is no schedule; names the place.
            ConfigError: A value is of the wrong type.
        """

    @abstractmethod
    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        """What is written, as plain lists, objects, numbers and texts.

        Raises:
            InputError: The format cannot say this schedule.
        """


def refuse_keys(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse keys that a format does not have.

    Raises:
        InputError: Names them and those that there are.
    """
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(
            f"{where} has the unknown keys {', '.join(map(escape_line, unknown))}; known: "
            f"{', '.join(known)}"
        )
