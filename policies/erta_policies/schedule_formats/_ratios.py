"""MagCache's ratios: as published, as diffusers takes them, of a profile, or made up for steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erta_framework import Profile
from erta_framework.budgets import StepSchedule
from erta_framework.budgets.formats import (
    MOST_STEPS,
    ScheduleDocument,
    ScheduleFormat,
    as_mask,
    check_facts,
    read_number,
    refuse_keys,
    require_object,
    settle_steps,
    split_facts,
)
from erta_framework.config import construct
from erta_framework.errors import InputError
from erta_framework.text import show_value
from erta_policies.magcache import MagCache, list_ratios

NAME = "magcache"
THRESHOLD = 0.5
JUMP = 2.0
"""One ratio of this size exceeds the threshold at once, and is exact in float32."""
OURS = {
    "mag_ratios": "ratios",
    "threshold": "threshold",
    "max_skip_steps": "max_skips",
    "retention_ratio": "retention",
}
"""Settings of diffusers' `MagCacheConfig`, and what our policy calls them."""
USUAL = {"threshold": 0.06, "max_skips": 2, "retention": 0.2}
"""Ours where a setting is left out; diffusers has another `max_skip_steps`."""
RULE = (
    "branches",
    "threshold",
    "max_skips",
    "retention",
    "rounding",
    "strict",
    "square_root",
    "forbidden",
    "largest_change",
    "experts",
    "high_steps",
    "shared",
    "resample",
)
"""Settings of our policy that go with ratios."""


class Ratios(ScheduleFormat):
    """Magnitude ratios: a list, fields of diffusers' `MagCacheConfig`, or settings of ours.

    Ratios make a schedule only with a rule. It is read with that of our `magcache`: its settings
    can be given with `--read`, such as `threshold` and `branches`, for lists that alternate between
    these as the published ones do. Calibrations of the MagCache repository leave out the ratio of
    the first step: `first=omitted` puts a 1 for each branch in front.

    Written are the ratios that were read. A schedule without ratios gets such under which the rule
    computes exactly its steps: 1 adds no error, and 2 exceeds the threshold at once. They
    measure nothing.

    Source: MagCache, arXiv 2506.09045, and diffusers 0.42.
    """

    title = "MagCache's ratios: a list, MagCacheConfig of diffusers, or settings of magcache"
    keeps = (NAME,)
    read_options = (*RULE, "first")

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        if isinstance(data, list):
            data = {NAME: {"ratios": data}}
        found, facts = split_facts(require_object(data, where, self.title))
        if "mag_ratios" in found:
            found = {"MagCacheConfig": found}
        elif "ratios" in found:
            found = {NAME: found}
        refuse_keys(found, ("MagCacheConfig", NAME), where)
        if not found:
            raise InputError(f"{where} holds no ratios; give a list, or mag_ratios")
        own: dict[str, Any] = {}
        for name in found:  # an export has the same twice
            settings = require_object(found[name], f"{where}, {name}", name)
            said, number = rename_settings(settings, name, f"{where}, {name}")
            num_steps = settle_steps(number, num_steps, where, name) if number else num_steps
            own |= said
        own |= {key: value for key, value in options.items() if key != "first"}
        own["ratios"] = prepend(own, options.get("first", "given"), where)
        policy = construct(MagCache, own, where=where)
        branches = len(policy.branches) or 1
        steps = settle_steps(None, num_steps or len(own["ratios"]) // branches, where, "ratios")
        document = describe_ratios(policy, steps)
        check_facts(facts, next(iter(document.schedules.values())), where)
        return document

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        own = document.own.get(NAME)
        made = make_up(document.as_one(self.title)) if own is None else dict(own)
        theirs = {name: made.get(key, USUAL.get(key)) for name, key in OURS.items()}
        if set(made) - set(OURS.values()):  # theirs has one list and no other settings
            return {NAME: made}
        config = {**theirs, "num_inference_steps": document.num_steps}
        return {"MagCacheConfig": config, NAME: made}


class ProfiledRatios(ScheduleFormat):
    """The mean ratios in a profile of `magcache_profiler`; it is read and not written."""

    title = "ratios in a profile of magcache_profiler (only read)"
    read_options = tuple(name for name in RULE if name != "branches")

    def read(
        self, path: Path, num_steps: int | None = None, options: Mapping[str, Any] | None = None
    ) -> ScheduleDocument:
        given = self._check(options, self.read_options, "read")
        profile = Profile.load(path)
        policy = construct(MagCache, {**given, "profile": str(path)}, where=str(path))
        return describe_ratios(policy, num_steps or profile.num_steps)

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        raise InputError(f"{where} is JSON, a profile is none; read it with --from {NAME}")

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        raise InputError(f"a profile is measured and not converted; write --to {NAME}")


def describe_ratios(policy: MagCache, num_steps: int) -> ScheduleDocument:
    """The schedule of a MagCache, and its ratios as one published list.

    Args:
        policy: With ratios, a published table, or a profile.
        num_steps: Steps of the schedule.

    Example:
        >>> document = describe_ratios(MagCache(ratios=(1.0, 0.5), branches=("cond", "uncond")), 1)
        >>> document.own["magcache"]["ratios"], document.own["magcache"]["branches"]
        ([1.0, 0.5], ['cond', 'uncond'])
    """
    return ScheduleDocument.of(policy.plan(num_steps), {NAME: list_ratios(policy, num_steps)})


def make_up(schedule: StepSchedule) -> dict[str, Any]:
    """Ratios under which MagCache's rule computes exactly these steps, as settings of ours.

    The rule (arXiv 2506.09045) multiplies the ratios since the last computed step, adds up how far
    each product is from 1, and computes once the sum exceeds the threshold or the run of reused
    steps is too long. A ratio of 1 adds nothing, so a step with it is reused; a ratio of 2 adds 1,
    beyond the threshold of 0.5 at once.
    """
    ratios = [JUMP if computed else 1.0 for computed in as_mask(schedule)]
    ratios[0] = 1.0  # there is nothing to reuse before the first step
    longest = max(step - source for step, source in enumerate(schedule.sources))
    return {"ratios": ratios, "threshold": THRESHOLD, "max_skips": longest, "retention": 0.0}


def rename_settings(
    settings: Mapping[str, Any], name: str, where: str
) -> tuple[dict[str, Any], int | None]:
    """Settings of either project as those of our policy, and the number of steps if they say it.

    Raises:
        InputError: A key is unknown, or the number of steps is none.
    """
    if name == NAME:
        refuse_keys(settings, ("ratios", *RULE), where)
        return dict(settings), None
    refuse_keys(settings, (*OURS, "num_inference_steps"), where)
    steps = read_number(settings.get("num_inference_steps"), f"{where}, num_inference_steps")
    return {OURS[key]: value for key, value in settings.items() if key in OURS}, steps


def prepend(own: Mapping[str, Any], first: Any, where: str) -> list[float]:
    """The ratios, with those of the first step where the list leaves them out.

    Raises:
        InputError: They are no list of numbers, there are none or too many, or `first` is
            neither of its values.
    """
    if first not in ("given", "omitted"):
        raise InputError(f"first is {show_value(first)}; give given or omitted")
    ratios = own.get("ratios")
    if not isinstance(ratios, list) or not all(type(ratio) in (int, float) for ratio in ratios):
        raise InputError(f"{where}, ratios is {show_value(ratios)}; write a list of numbers")
    ratios = [float(ratio) for ratio in ratios]
    many = len(own.get("branches") or ()) or 1
    if not 0 < len(ratios) <= MOST_STEPS * many:
        raise InputError(f"{where}, ratios: {len(ratios)} entries; 1 to {MOST_STEPS} for a branch")
    return [1.0] * many + ratios if first == "omitted" else ratios
