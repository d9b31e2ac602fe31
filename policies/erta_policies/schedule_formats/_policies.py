"""Ours: the list of policies of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erta_framework.budgets import StepSchedule, plan_export
from erta_framework.budgets.formats import (
    ScheduleDocument,
    ScheduleFormat,
    as_mask,
    settle_steps,
)
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_framework.text import escape_line
from erta_policies.schedule_formats._components import ComponentMasks

KINDS = {
    "attn": "attention",
    "attn1": "attention",
    "attn2": "cross",
    "cross_attn": "cross",
    "ff": "mlp",
    "mlp": "mlp",
}
"""Names of components, as the blocks of diffusers and of DiT have them, and our kinds of places."""


class Policies(ScheduleFormat):
    """What `policies:` of a configuration takes, so that our sampler runs the schedule.

    Steps of the whole network are `skip_policy`, components the schedule of `smoothcache`. Where a
    component is that of one block, such as `attn1-3`, each is an `at`. Ratios and paths stay those
    of `magcache` and `meancache`. Read is any list of policies that plans one list of steps, and a
    `smoothcache` with a schedule.
    """

    title = "policies of ours, as a configuration lists them"
    keeps = ("magcache", "meancache")

    def parse(
        self, data: Any, where: str, num_steps: int | None, options: Mapping[str, Any]
    ) -> ScheduleDocument:
        if isinstance(data, dict) and set(data) == {"policies"}:
            data = data["policies"]
        if not isinstance(data, list):
            raise InputError(f"{where} is no list of policies; write [{{NAME: {{...}}}}]")
        policies = build_policies(data)
        listed = find_components(data)
        if listed is not None:
            return ComponentMasks().parse(listed, where, num_steps, {})
        steps = settle_steps(None, num_steps, where, "the list of policies")
        return ScheduleDocument.of(plan_export(policies, steps))

    def settings(self, document: ScheduleDocument, options: Mapping[str, Any]) -> Any:
        if "magcache" in document.own:
            return [{"magcache": dict(document.own["magcache"])}]
        if document.named == "components" and not any("-" in name for name in document.schedules):
            masks = {name: as_mask(each) for name, each in document.schedules.items()}
            return [{"smoothcache": {"schedule": masks}}]
        if document.named == "components":
            return [
                {"at": {"sites": find_sites(name), "when": as_policy(each)}}
                for name, each in document.schedules.items()
            ]
        schedule = document.as_one(self.title)
        if "meancache" in document.own:
            spans = document.own["meancache"]["spans"]
            return [{"meancache": {"fresh": list(schedule.computed), "spans": list(spans)}}]
        return [as_policy(schedule)]


def find_components(policies: Sequence[Any]) -> Mapping[str, Any] | None:
    """The schedule of a `smoothcache` that stands alone, by component; None for anything else.

    Example:
        >>> find_components([{"smoothcache": {"schedule": {"attn": [1, 0]}}}])
        {'attn': [1, 0]}
    """
    match policies:
        case [{"smoothcache": {"schedule": Mapping() as listed}}]:
            return listed
    return None


def as_policy(schedule: StepSchedule) -> dict[str, Any]:
    """The policy that computes these steps."""
    return {"skip_policy": {"steps": list(schedule.computed)}}


def find_sites(component: str) -> dict[str, Any]:
    """The places of a component of SmoothCache: all of its kind, or that of one block.

    Raises:
        InputError: We have no kind for its name.

    Example:
        >>> find_sites("attn1-3")
        {'kind': ['attention'], 'depth': '3'}
    """
    name, _, number = component.partition("-")
    if name not in KINDS or (number and not (number.isascii() and number.isdigit())):
        raise InputError(
            f"no kind of place here is the component {escape_line(component)}; known: "
            f"{', '.join(KINDS)}, each alone or with the number of a block, such as attn1-3"
        )
    return {"kind": [KINDS[name]], **({"depth": number} if number else {})}
