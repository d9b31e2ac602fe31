"""What a policy with a fixed schedule will do, asked without running anything.

A policy that knows its schedule beforehand may offer any of these methods; `erta plan` and the
demo's report ask for them. Nothing has to be registered: having the methods is enough.

* `plan(num_steps)`: the schedule, as a `StaticSchedule`.
* `describe(num_steps)`: named numbers about that schedule, such as the mean error.
  `"predicted"` among them is the planner's error, which falls as network calls are added.
* `unit`: in words what `"predicted"` is in, where settings decide that; else the policy's name is.
  Plans that were measured serve budgets in dB of planners with the same words.
* `with_calls(calls)`: the same policy asked for a number of network calls; see `replay`.
* `all_plans(num_steps)`: steps and predicted error of every number of calls; see `fronts`.
* `step_errors(num_steps)`: for every step, the error that answering without the network would cost
  there according to calibration, whether or not the step is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from erta_framework.calibration import Profile
from erta_framework.errors import PolicyError
from erta_framework.plugins import Policy, flatten


class StaticSchedule(Protocol):
    """A schedule that is known before sampling.

    `computed` holds the computed steps, rising; `sources` the step whose evaluation each step
    uses, itself where it is computed; `threshold` the number that made the schedule, if one did.
    """

    @property
    def computed(self) -> tuple[int, ...]: ...

    @property
    def sources(self) -> tuple[int, ...]: ...

    @property
    def threshold(self) -> float | None: ...


@runtime_checkable
class Planner(Protocol):
    """A policy that knows its schedule beforehand."""

    def plan(self, num_steps: int) -> StaticSchedule: ...


@runtime_checkable
class Describer(Protocol):
    """A policy that can put its schedule in numbers; NaN where one has no meaning."""

    def describe(self, num_steps: int) -> Mapping[str, float]: ...


@runtime_checkable
class ErrorForecaster(Protocol):
    """A policy that knows what reuse would cost at every step; NaN where it does not."""

    def step_errors(self, num_steps: int) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a list of policies will do.

    Attributes:
        policy: Who plans.
        num_steps: Steps of the schedule.
        computed: Computed steps, rising.
        sources: For every step, the step whose evaluation it uses (itself if computed).
        threshold: The number that made the schedule, if one did.
        facts: What the policy says of it, by name.
        errors: Predicted error of reuse at each step, empty if the policy does not say.
    """

    policy: str
    num_steps: int
    computed: tuple[int, ...]
    sources: tuple[int, ...]
    threshold: float | None
    facts: Mapping[str, float]
    errors: tuple[float, ...]

    @property
    def calls(self) -> int:
        """Network calls of each guidance branch."""
        return len(self.computed)

    @property
    def speedup(self) -> float:
        """Steps per network call. Wall time follows it where the network takes most of the time."""
        return self.num_steps / self.calls


def forecast(policies: Sequence[Policy], num_steps: int) -> Forecast:
    """Ask the first of the policies that knows its schedule.

    Args:
        policies: Recipes are expanded into their parts.
        num_steps: Steps of the schedule.

    Raises:
        PolicyError: None of them plans ahead.

    Example:
        >>> from erta_framework.config import build_policies
        >>> forecast(build_policies([{"skip_policy": {"evenly": 3}}]), 5).computed
        (0, 2, 4)
    """
    parts = flatten(policies)
    planner = next((part for part in parts if isinstance(part, Planner)), None)
    if planner is None:
        names = ", ".join(part.name for part in parts) or "no policies"
        raise PolicyError(
            f"none of the policies plans ahead ({names}): they decide while sampling, or never; "
            "run `erta sample` and read its trace"
        )
    plan = planner.plan(num_steps)
    facts = dict(planner.describe(num_steps)) if isinstance(planner, Describer) else {}
    errors: tuple[float, ...] = ()
    if isinstance(planner, ErrorForecaster):
        predicted = tuple(float(error) for error in planner.step_errors(num_steps))
        errors = () if all(math.isnan(error) for error in predicted) else predicted
    assert isinstance(planner, Policy)
    return Forecast(
        policy=planner.name,
        num_steps=num_steps,
        computed=tuple(plan.computed),
        sources=tuple(plan.sources),
        threshold=plan.threshold,
        facts={name: value for name, value in facts.items() if not math.isnan(value)},
        errors=errors,
    )


def unit_of(policy: Policy) -> str:
    """What a planner's predicted errors are in: its `unit`, else its name.

    Example:
        >>> from erta_framework.config import build_policies
        >>> unit_of(build_policies([{"skip_policy": {"evenly": 3}}])[0])
        'skip_policy'
    """
    return str(getattr(policy, "unit", policy.name))


def promise(policies: Sequence[Policy], num_steps: int | None = None) -> str:
    """What every request will cost, in a line; empty where nothing says so beforehand.

    Args:
        policies: Recipes are expanded into their parts.
        num_steps: Steps of the schedule; by default those of the planner's profile.

    Example:
        >>> from erta_framework.config import build_policies
        >>> promise(build_policies([{"skip_policy": {"evenly": 3}}]), 6)
        'every request computes 3 of 6 steps, 2.00 steps a network call (skip_policy)'
    """
    parts = flatten(policies)
    planner = next((part for part in parts if isinstance(part, Planner)), None)
    steps = num_steps if num_steps is not None else profile_steps(planner)
    if planner is None or steps is None:
        return ""
    plan = forecast(policies, steps)
    said = (
        f"every request computes {plan.calls} of {steps} steps, {plan.speedup:.2f} steps a "
        f"network call ({plan.policy}"
    )
    predicted = plan.facts.get("predicted")
    return f"{said})" if predicted is None else f"{said}, predicted error {predicted:.4g})"


def profile_steps(policy: object) -> int | None:
    """Steps of the profile that a policy holds, None without one."""
    source = getattr(policy, "profile", None)
    if source is None:
        return None
    profile = source if isinstance(source, Profile) else Profile.load(source)
    return int(profile.fingerprint["num_steps"])
