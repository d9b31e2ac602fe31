"""Presets and settings that do not go together, and runs that do not fit a preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_policies.fastercache._presets import PRESETS
from erta_policies.fastercache._rules import Preset


def check_preset(policy: Policy, preset: str | None, own: Sequence[str]) -> None:
    """Refuse a preset that is none, or that is given beside the settings that it stands for.

    Args:
        policy: The policy.
        preset: Name of the preset; None without one.
        own: Names of the settings of the general rule.

    Raises:
        PolicyError: Names the preset or the setting.
    """
    if preset is None:
        return
    if preset not in PRESETS:
        raise PolicyError(
            f"preset of {policy.name} is {preset!r}; it is one of {', '.join(PRESETS)}, or None "
            "for the general rule"
        )
    changed = [
        field.name
        for field in fields(policy)
        if field.name in own and getattr(policy, field.name) != field.default
    ]
    if changed:
        raise PolicyError(
            f"{policy.name} got {changed[0]}={getattr(policy, changed[0])!r} beside "
            f"preset={preset!r}, which is published as it is; leave out one of the two"
        )


def find_preset(name: str, num_steps: int, owner: str) -> Preset:
    """A preset, if it is made for this number of steps.

    Raises:
        PolicyError: It is made for another.
    """
    preset = PRESETS[name]
    if preset.steps != num_steps:
        raise PolicyError(
            f"preset {name!r} of {owner} is published for {preset.steps} steps, this run has "
            f"{num_steps}; run {preset.steps} steps, or leave out preset, whose general rule "
            "goes by parts of the steps"
        )
    return preset


def check_at_least(policy: Policy, **least: float) -> None:
    """Refuse settings that are too small.

    Raises:
        PolicyError: Names the setting.
    """
    for name, bound in least.items():
        if not getattr(policy, name) >= bound:
            raise PolicyError(
                f"{name} of {policy.name} is {getattr(policy, name)}, it must be at least {bound:g}"
            )


def check_parts(policy: Policy, *names: str) -> None:
    """Refuse settings that are no part of the steps.

    Raises:
        PolicyError: Names the setting.
    """
    for name in names:
        if not 0.0 <= getattr(policy, name) <= 1.0:
            raise PolicyError(
                f"{name} of {policy.name} is {getattr(policy, name)}, it must be from 0 to 1"
            )
