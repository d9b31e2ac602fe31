"""Formats of one plain list: computed steps, or a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erta_framework.budgets.formats._document import ScheduleDocument
from erta_framework.budgets.formats._format import ScheduleFormat, refuse_keys
from erta_framework.budgets.formats._reading import (
    check_facts,
    read_number,
    read_steps,
    read_whole_mask,
    settle_steps,
    split_facts,
)
from erta_framework.budgets.formats._run_lengths import as_mask


class StepList(ScheduleFormat):
    """A list of computed steps, such as `[0, 1, 3, 7]`; LeMiCa publishes its schedules so."""

    title = "a list of computed steps, as LeMiCa publishes its schedules"

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        found, facts = split_list(data, "steps", where)
        said = read_number(facts.get("num_steps"), f"{where}, num_steps")
        steps = settle_steps(said, num_steps, where, "num_steps")
        schedule = read_steps(found.get("steps", facts.get("computed")), where, steps)
        check_facts(facts, schedule, where)
        return ScheduleDocument.of(schedule)

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        return list(document.as_one(self.title).computed)


class StepMask(ScheduleFormat):
    """A list with 1 for every step that computes and 0 for every step that reuses."""

    title = "a list with 1 for each computed and 0 for each reused step"

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        found, facts = split_list(data, "mask", where)
        schedule = read_whole_mask(found.get("mask"), where, num_steps)
        check_facts(facts, schedule, where)
        return ScheduleDocument.of(schedule)

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        return as_mask(document.as_one(self.title))


def split_list(data: Any, name: str, where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A list under its name, which may also stand alone, and the facts beside it.

    Raises:
        InputError: There are other keys.
    """
    if not isinstance(data, dict):
        return {name: data}, {}
    found, facts = split_facts(data)
    refuse_keys(found, (name, "policy", "num_steps", "computed"), where)
    return found, facts
