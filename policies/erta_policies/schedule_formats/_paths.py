"""MeanCache's paths: computed steps, and how far back each edge between two of them looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erta_framework.budgets.formats import (
    ScheduleDocument,
    ScheduleFormat,
    check_facts,
    read_numbers,
    read_steps,
    refuse_keys,
    require_object,
    settle_steps,
    split_facts,
)
from erta_framework.errors import InputError, PolicyError
from erta_framework.text import escape_line
from erta_policies.meancache import EdgePath

NAME = "meancache"


class EdgePaths(ScheduleFormat):
    """A path of MeanCache, `{"fresh": [...], "spans": [...]}`, or a table of paths by calls.

    A path ends at the last step, so that it says the number of steps. Of a table, as released for
    each model, `calls` picks one. A schedule without spans is written with spans of 1, which look
    one step back.

    Source: MeanCache, arXiv 2601.19961, and UnicomAI/MeanCache at 2e12280a.
    """

    title = "MeanCache's path: fresh steps and the span of each edge; or a table by calls"
    keeps = (NAME,)
    read_options = ("calls",)

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        found, facts = split_facts(require_object(data, where, self.title))
        if "fresh" not in found:
            found, where = pick_path(found, options.get("calls"), where)
        elif "calls" in options:
            raise InputError(f"{where} is one path; calls is for a table of several")
        refuse_keys(found, ("fresh", "spans"), where)
        fresh = read_numbers(found.get("fresh"), f"{where}, fresh", 0)
        last = fresh[-1] + 1 if fresh else None
        steps = settle_steps(last, num_steps, where, "the path")
        schedule = read_steps(list(fresh), f"{where}, fresh", steps)
        check_facts(facts, schedule, where)
        given = found.get("spans", [1] * (len(fresh) - 1))
        spans = read_numbers(given, f"{where}, spans", 0)
        try:
            EdgePath(fresh, spans)
        except PolicyError as error:
            raise InputError(f"{where}: {error}") from error
        return ScheduleDocument.of(schedule, {NAME: {"spans": list(spans)}})

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        fresh = list(document.as_one(self.title).computed)
        if fresh[-1] != document.num_steps - 1:
            raise InputError(
                f"the schedule reuses its last step, {document.num_steps - 1}, and a path of "
                f"MeanCache ends there (its last computed step is {fresh[-1]}); compute it too"
            )
        own = document.own.get(NAME, {})
        return {"fresh": fresh, "spans": own.get("spans", [1] * (len(fresh) - 1))}


def pick_path(table: Mapping[str, Any], calls: Any, where: str) -> tuple[dict[str, Any], str]:
    """The path of a table by calls, and where it stands.

    Raises:
        InputError: There is none of so many calls; lists those that there are.
    """
    known = ", ".join(map(escape_line, table)) or "none"
    if str(calls) not in table:
        raise InputError(
            f"{where} is a table of paths for {known} calls, calls is {escape_line(calls)}; pick "
            "one with --read calls=N"
        )
    place = f"{where}, {calls}"
    return require_object(table[str(calls)], place, "a path"), place
