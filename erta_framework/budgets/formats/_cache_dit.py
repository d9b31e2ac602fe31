"""Formats of cache-dit's step mask: its own settings, and SGLang's environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.budgets.formats._document import ScheduleDocument
from erta_framework.budgets.formats._format import ScheduleFormat, refuse_keys
from erta_framework.budgets.formats._reading import (
    MOST_STEPS,
    as_schedule,
    check_facts,
    read_number,
    read_numbers,
    read_text,
    read_whole_mask,
    require_object,
    settle_steps,
    split_facts,
)
from erta_framework.budgets.formats._run_lengths import as_mask, expand_run_lengths, to_run_lengths
from erta_framework.config import convert
from erta_framework.errors import InputError
from erta_framework.text import escape_line, show_value

STATIC = "static"
BINS = ("compute_bins", "cache_bins")
CONFIG = ("steps_computation_mask", "steps_computation_policy", "num_inference_steps")
ENVIRONMENT = tuple(f"SGLANG_CACHE_DIT_SCM_{name}" for name in ("COMPUTE_BINS", "CACHE_BINS"))
POLICY = "SGLANG_CACHE_DIT_SCM_POLICY"
ENABLED = "SGLANG_CACHE_DIT_ENABLED"


class CacheDit(ScheduleFormat):
    """Fields of cache-dit's `DBCacheConfig`, and the arguments of its `steps_mask`.

    Read is either, alone or in an object under the name of the class or function. The policy of
    the mask must be "static": with "dynamic" cache-dit decides while sampling. The numbers of
    blocks that always run, `Fn_compute_blocks` and `Bn_compute_blocks`, are yours to choose.
    """

    title = "cache-dit's step mask: DBCacheConfig, or the run lengths of steps_mask"

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        found, facts = split_facts(require_object(data, where, self.title))
        parts = {"DBCacheConfig": CONFIG, "steps_mask": (*BINS, "total_steps")}
        nested = {name for name in parts if name in found}
        if not nested:  # the fields alone
            name = "steps_mask" if BINS[0] in found else "DBCacheConfig"
            found, nested = {name: found}, {name}
        refuse_keys(found, tuple(parts), where)
        schedules = []
        for name in sorted(nested):
            place = f"{where}, {name}"
            settings = require_object(found[name], place, name)
            refuse_keys(settings, parts[name], place)
            read = read_config if name == "DBCacheConfig" else read_bins
            schedules.append(read(settings, place, num_steps))
        if any(each != schedules[0] for each in schedules):
            masks = " and ".join(str(as_mask(each)) for each in schedules)
            raise InputError(f"{where}: its parts say {masks}; remove the one that is wrong")
        check_facts(facts, schedules[0], where)
        return ScheduleDocument.of(schedules[0])

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        schedule = document.as_one(self.title)
        mask = as_mask(schedule)
        bins = dict(zip(BINS, to_run_lengths(mask), strict=True))
        return {
            "DBCacheConfig": dict(zip(CONFIG, (mask, STATIC, schedule.num_steps), strict=True)),
            "steps_mask": {**bins, "total_steps": schedule.num_steps},
        }


class SGLang(ScheduleFormat):
    """The environment variables by which SGLang takes cache-dit's run lengths and their policy.

    SGLang documents them as lists with commas, and ignores one without the other, or both where
    the cache is not switched on. With the setting `export` the lines are commands of a shell.
    """

    title = "SGLang's environment variables for the step mask of cache-dit"
    write_options = ("export",)

    def read(
        self, path: Path, num_steps: int | None = None, options: Mapping[str, Any] | None = None
    ) -> ScheduleDocument:
        where = escape_line(path)
        found: dict[str, Any] = {}
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            name, is_given, value = line.strip().removeprefix("export ").partition("=")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not is_given or name in found:
                raise InputError(
                    f"{where}, line {number} is {show_value(line)}; write NAME=VALUE once"
                )
            found[name] = value.strip("\"'")
        return self.parse(found, where, num_steps, self._check(options, (), "read"))

    def write(self, document: ScheduleDocument, options: Mapping[str, Any] | None = None) -> str:
        given = self._check(options, self.write_options, "write")
        verb = "export " if convert(given.get("export", False), bool, "--write export") else ""
        found = self.settings(document, given)
        return "".join(f"{verb}{name}={value}\n" for name, value in found.items())

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        found, facts = split_facts(require_object(data, where, self.title))
        refuse_keys(found, (*ENVIRONMENT, POLICY, ENABLED), where)
        if str(found.get(ENABLED, "true")).lower() not in ("true", "1"):
            raise InputError(
                f"{where}, {ENABLED} is {show_value(found[ENABLED])}, so that SGLang reads none of "
                "the rest; write true"
            )
        missing = [name for name in ENVIRONMENT if not found.get(name)]
        if missing:
            raise InputError(f"{where} has no {' and '.join(missing)}; SGLang needs both lists")
        require_static(found.get(POLICY, "dynamic"), f"{where}, {POLICY}")
        bins = {
            name: split_numbers(found[variable], f"{where}, {variable}")
            for name, variable in zip(BINS, ENVIRONMENT, strict=True)
        }
        schedule = read_bins(bins, where, num_steps)
        check_facts(facts, schedule, where)
        return ScheduleDocument.of(schedule)

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        compute, cache = to_run_lengths(as_mask(document.as_one(self.title)))
        if not cache:
            raise InputError(
                f"the schedule computes all of its {document.num_steps} steps, and SGLang ignores "
                "run lengths of which one list is empty; leave the cache off there"
            )
        lists = [",".join(map(str, run)) for run in (compute, cache)]
        return {**dict(zip(ENVIRONMENT, lists, strict=True)), POLICY: STATIC, ENABLED: "true"}


def read_config(settings: Mapping[str, Any], where: str, num_steps: int | None) -> StepSchedule:
    """The fields of a `DBCacheConfig`.

    Raises:
        InputError: There is no mask, it is dynamic, or of another number of steps.
    """
    if "steps_computation_mask" not in settings:
        raise InputError(f"{where} has no steps_computation_mask; give it, or compute_bins")
    require_static(settings.get("steps_computation_policy", STATIC), where)
    found = settings.get("num_inference_steps")
    schedule = read_whole_mask(
        settings["steps_computation_mask"], f"{where}, steps_computation_mask", num_steps
    )
    if found not in (None, schedule.num_steps):
        raise InputError(
            f"{where}, num_inference_steps is {show_value(found)}, the mask has "
            f"{schedule.num_steps} entries; give as many"
        )
    return schedule


def read_bins(settings: Mapping[str, Any], where: str, num_steps: int | None) -> StepSchedule:
    """The arguments of cache-dit's `steps_mask`.

    Raises:
        InputError: A list is missing or holds no run lengths, or they do not cover the steps.
    """
    missing = [name for name in BINS if name not in settings]
    if missing:
        raise InputError(f"{where} has no {' and '.join(missing)}; give both lists")
    compute, cache = (read_numbers(settings[name], f"{where}, {name}", 1) for name in BINS)
    if not compute:
        raise InputError(f"{where}, compute_bins is empty; the first step computes")
    said = read_number(settings.get("total_steps"), f"{where}, total_steps")
    asked = num_steps if said is None else settle_steps(said, num_steps, where, "total_steps")
    whole = sum(compute) + sum(cache)
    if whole > MOST_STEPS:
        raise InputError(f"{where}: the runs are {whole} steps; at most {MOST_STEPS} are read")
    steps = settle_steps(None, whole if asked is None else asked, where, "the run lengths")
    return as_schedule(expand_run_lengths(compute, cache, steps, where))


def require_static(policy: Any, where: str) -> None:
    """Refuse a mask whose reused steps are decided while sampling.

    Raises:
        InputError: Names the policy.
    """
    if policy != STATIC:
        raise InputError(
            f"{where}: the policy of the mask is {show_value(policy)}, so that cache-dit may "
            "compute more than it says; only 'static' is a schedule"
        )


def split_numbers(text: Any, where: str) -> list[int]:
    """The whole numbers of a list with commas.

    Raises:
        InputError: One is none; names its place.
    """
    parts = str(text).split(",")
    for place, part in enumerate(parts):
        if not (part.strip().isascii() and part.strip().isdigit() and len(part) < 9):
            raise InputError(
                f"{where}, entry {place} is {show_value(part)}; write whole numbers with commas "
                "between them"
            )
    return [int(part) for part in parts]
