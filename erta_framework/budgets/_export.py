"""A schedule as settings of other projects' caches.

Where a policy here leaves out the network, those caches leave out the block stack. The computed
steps are the same; the predictor of the reused steps is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_framework.budgets._forecast import forecast
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.compatibility import Role, find_role
from erta_framework.errors import InputError, suggest
from erta_framework.plugins import Policy, flatten

THRESHOLD = 0.5
JUMP = 2.0
"""One ratio of this size exceeds the threshold at once, and is exact in float32."""


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


def to_step_mask(schedule: StepSchedule) -> list[int]:
    """1 where a step computes and 0 where it reuses, the step mask of cache-dit.

    Example:
        >>> to_step_mask(StepSchedule.of({0, 2, 4}, num_steps=5))
        [1, 0, 1, 0, 1]
    """
    return [int(source == step) for step, source in enumerate(schedule.sources)]


def to_cache_dit(schedule: StepSchedule) -> dict[str, Any]:
    """Fields of cache-dit's `DBCacheConfig` that compute these steps and no others.

    The numbers of blocks that always run, `Fn_compute_blocks` and `Bn_compute_blocks`, are yours
    to choose.
    """
    return {
        "DBCacheConfig": {
            "steps_computation_mask": to_step_mask(schedule),
            "steps_computation_policy": "static",
            "num_inference_steps": schedule.num_steps,
        }
    }


def to_magcache(schedule: StepSchedule) -> dict[str, Any]:
    """Ratios under which MagCache's rule computes exactly these steps.

    The rule (arXiv 2506.09045) multiplies the ratios since the last computed step, adds up how far
    each product is from 1, and computes once the sum exceeds the threshold or the run of reused
    steps is too long. A ratio of 1 adds nothing, so a step with it is reused; a ratio of 2 adds 1,
    beyond the threshold of 0.5 at once. The ratios are made up for these steps and
    measure nothing.

    Returns:
        Fields of diffusers' `MagCacheConfig`, and settings of our `magcache`.
    """
    ratios = [JUMP if computed else 1.0 for computed in to_step_mask(schedule)]
    ratios[0] = 1.0  # there is nothing to reuse before the first step
    longest = max(step - source for step, source in enumerate(schedule.sources))
    return {
        "MagCacheConfig": {
            "mag_ratios": ratios,
            "threshold": THRESHOLD,
            "max_skip_steps": longest,
            "retention_ratio": 0.0,
            "num_inference_steps": schedule.num_steps,
        },
        "magcache": {
            "ratios": ratios,
            "threshold": THRESHOLD,
            "max_skips": longest,
            "retention": 0.0,
        },
    }


FORMATS: Mapping[str, Callable[[StepSchedule], dict[str, Any]]] = {
    "cache-dit": to_cache_dit,
    "magcache": to_magcache,
}


def export_schedule(schedule: StepSchedule, form: str) -> dict[str, Any]:
    """A schedule as settings of another cache, with its policy and computed steps.

    Raises:
        InputError: The format is unknown.
    """
    if form not in FORMATS:
        raise InputError(f"no export to {form!r}; {suggest(form, list(FORMATS))}")
    facts = {
        "policy": schedule.policy,
        "num_steps": schedule.num_steps,
        "computed": list(schedule.computed),
    }
    return {**facts, **FORMATS[form](schedule)}


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
