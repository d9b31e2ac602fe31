"""A schedule as settings of other projects' caches.

Where a policy here leaves out the network, those caches leave out the block stack. The computed
steps are the same; the predictor of the reused steps is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erta_framework.budgets._forecast import forecast
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.budgets.formats import ScheduleDocument, load_format
from erta_framework.compatibility import Role, find_role
from erta_framework.errors import InputError
from erta_framework.plugins import Policy, flatten


def plan_export(policies: Sequence[Policy], num_steps: int) -> StepSchedule:
    """The schedule of a list of policies, where one list of steps says all that they decide.

    Args:
        policies: Recipes are expanded into their parts.
        num_steps: Steps of the schedule.

    Raises:
        PolicyError: None of them plans ahead.
        InputError: Another policy decides too or changes decisions, or the branches of guidance
            have schedules of their own.
    """
    parts = flatten(policies)
    found = forecast(policies, num_steps)
    deciding = [part for part in parts if find_role(type(part)) in (Role.WHEN, Role.LIMIT)]
    others = [part.name for part in deciding if part.name != found.policy]
    if others or len(deciding) > 1:
        raise InputError(
            f"{', '.join(others) or found.policy} decides beside {found.policy}, so that its plan "
            "is not the schedule that runs; export a policy that decides alone"
        )
    branches = found.branches
    if len({schedule.computed for schedule in branches.values()}) > 1:
        raise InputError(
            f"{found.policy} has other steps for each of the branches {', '.join(branches)}, and "
            "the caches exported to have one list for all; let one decide for all branches"
        )
    return found


def export_schedule(schedule: StepSchedule, form: str) -> dict[str, Any]:
    """A schedule as settings of another cache, with its policy and computed steps.

    Args:
        schedule: What is computed.
        form: Name of a format of `erta_framework.schedule_formats`, such as `"cache-dit"`.

    Returns:
        The settings; a list, as some formats are, under the name of the format.

    Raises:
        InputError: The format is unknown, or cannot say this schedule.
    """
    found = load_format(form, "export to").settings(ScheduleDocument.of(schedule), {})
    facts = {
        "policy": schedule.policy,
        "num_steps": schedule.num_steps,
        "computed": list(schedule.computed),
    }
    return {**facts, **(found if isinstance(found, dict) else {form: found})}


def write_export(schedule: StepSchedule, form: str, path: str | Path) -> Path:
    """Write `export_schedule` as JSON.

    Raises:
        InputError: The format is unknown.
    """
    text = json.dumps(export_schedule(schedule, form), indent=2)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path
