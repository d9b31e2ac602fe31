"""A schedule that is known before sampling, in the words of other projects' caches.

The caches of other projects answer without the block stack where these policies answer without the
network: the steps are the same, what stands in is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_framework.budgets._forecast import Forecast, forecast
from erta_framework.compatibility import Role, find_role
from erta_framework.errors import InputError, suggest
from erta_framework.plugins import Policy, flatten

THRESHOLD = 0.5
JUMP = 2.0
"""A ratio this far from 1 is beyond the threshold at once; without rounding in float32."""


def exportable(policies: Sequence[Policy], num_steps: int) -> Forecast:
    """The schedule of a list of policies, if one list of steps says all of it.

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
    plans = getattr(deciding[0], "plans", None)
    each = {} if plans is None else {n: tuple(p.computed) for n, p in plans(num_steps).items()}
    if len(set(each.values())) > 1:
        raise InputError(
            f"{found.policy} has other steps for each of the branches {', '.join(each)}, and the "
            "caches exported to have one list for all; let one decide for all branches"
        )
    return found


def step_mask(plan: Forecast) -> list[int]:
    """1 where a step computes and 0 where it reuses, the step mask of cache-dit.

    Example:
        >>> from erta_framework.config import build_policies
        >>> step_mask(exportable(build_policies([{"skip_policy": {"evenly": 3}}]), 5))
        [1, 0, 1, 0, 1]
    """
    return [int(source == step) for step, source in enumerate(plan.sources)]


def cache_dit(plan: Forecast) -> dict[str, Any]:
    """Fields of cache-dit's `DBCacheConfig` that compute these steps and no others.

    How many blocks run in any case, `Fn_compute_blocks` and `Bn_compute_blocks`, stays open.
    """
    return {
        "DBCacheConfig": {
            "steps_computation_mask": step_mask(plan),
            "steps_computation_policy": "static",
            "num_inference_steps": plan.num_steps,
        }
    }


def magcache(plan: Forecast) -> dict[str, Any]:
    """Ratios under which MagCache's rule computes exactly these steps.

    The rule (arXiv 2506.09045) multiplies the ratios since the last computed step, adds up how far
    each product is from 1, and computes once the sum exceeds the threshold or the run of reused
    steps is too long. A ratio of 1 adds nothing, so a step with it is reused; a ratio of 2 adds 1,
    beyond the threshold of 0.5 at once. The ratios are solved for, they measure nothing.

    Returns:
        Fields of diffusers' `MagCacheConfig`, and settings of our `magcache`.
    """
    ratios = [JUMP if computed else 1.0 for computed in step_mask(plan)]
    ratios[0] = 1.0  # there is nothing to reuse before the first step
    longest = max(step - source for step, source in enumerate(plan.sources))
    return {
        "MagCacheConfig": {
            "mag_ratios": ratios,
            "threshold": THRESHOLD,
            "max_skip_steps": longest,
            "retention_ratio": 0.0,
            "num_inference_steps": plan.num_steps,
        },
        "magcache": {
            "ratios": ratios,
            "threshold": THRESHOLD,
            "max_skips": longest,
            "retention": 0.0,
        },
    }


FORMATS: Mapping[str, Callable[[Forecast], dict[str, Any]]] = {
    "cache-dit": cache_dit,
    "magcache": magcache,
}


def exported(plan: Forecast, form: str) -> dict[str, Any]:
    """A schedule as settings of another cache, beside what it is.

    Raises:
        InputError: The format is unknown.
    """
    if form not in FORMATS:
        raise InputError(f"no export to {form!r}; {suggest(form, list(FORMATS))}")
    facts = {"policy": plan.policy, "num_steps": plan.num_steps, "computed": list(plan.computed)}
    return {**facts, **FORMATS[form](plan)}


def write_export(plan: Forecast, form: str, path: str | Path) -> Path:
    """Write `exported` as JSON.

    Raises:
        InputError: The format is unknown.
    """
    text = json.dumps(exported(plan, form), indent=2)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path
