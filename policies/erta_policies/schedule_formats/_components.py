"""SmoothCache's schedules: for each component of the network, 1 where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erta_framework.budgets.formats import (
    EVERY,
    ScheduleDocument,
    ScheduleFormat,
    as_mask,
    as_schedule,
    check_facts,
    read_mask,
    require_object,
    settle_steps,
    split_facts,
)
from erta_framework.config import convert
from erta_framework.errors import InputError
from erta_framework.text import escape_line

MOST_COMPONENTS = 10_000
"""Most components of one file: more than blocks times components of any network."""


class ComponentMasks(ScheduleFormat):
    """An object with a list of 0 and 1 for each component, such as `attn1` or `attn1-3`.

    The lists are read by the number of the call, and past the end of a list its component runs: so
    lists may have other lengths. Without the number of steps the longest list gives it.

    Source: SmoothCache, arXiv 2411.10510, and Roblox/SmoothCache 0.1.1.
    """

    title = "SmoothCache's schedule: component -> list with 1 where it runs"
    write_options = ("components",)

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        found, facts = split_facts(require_object(data, where, self.title))
        if not 0 < len(found) <= MOST_COMPONENTS:
            raise InputError(
                f"{where} has {len(found)} components; a schedule has 1 to {MOST_COMPONENTS}"
            )
        masks = {
            name: read_mask(mask, f"{where}, {escape_line(name)}") for name, mask in found.items()
        }
        longest = max(masks, key=lambda name: len(masks[name]))
        steps = settle_steps(None, num_steps or len(masks[longest]), where, "the lists")
        if len(masks[longest]) > steps:
            raise InputError(
                f"{where}, {escape_line(longest)} has {len(masks[longest])} entries, --steps says "
                f"{steps}; give a list of at most as many"
            )
        schedules = {
            name: as_schedule([*mask, *[1] * (steps - len(mask))]) for name, mask in masks.items()
        }
        document = ScheduleDocument(schedules, "components")
        check_facts(facts, schedules[longest], where)
        return document

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        if document.named == "components":
            if "components" in options:
                raise InputError("the schedule names its components; leave out components")
            return {name: as_mask(each) for name, each in document.schedules.items()}
        schedule = document.as_one(self.title)
        if "components" not in options:
            raise InputError(
                f"a schedule of {EVERY} has no components, {self.title} has; name them, such as "
                "--write components=[attn1,ff]"
            )
        names: tuple[str, ...] = convert(options["components"], tuple[str, ...], "components")
        if not names or len({*names}) < len(names):
            raise InputError(f"components is {list(names)}; name each component once")
        return {name: as_mask(schedule) for name in names}
