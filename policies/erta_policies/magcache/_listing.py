"""A MagCache whose ratios come from anywhere, as settings with one list of ratios."""

from __future__ import annotations

from typing import Any

from erta_policies.magcache._policy import GENERIC, MagCache
from erta_policies.magcache._rule import Place, kept, resample_ratios
from erta_policies.magcache._tables import EVERY


def list_ratios(policy: MagCache, num_steps: int) -> dict[str, Any]:
    """Settings of a MagCache with the ratios listed, that decides as the given one.

    Ratios of several branches alternate in one list, as the published code has them. Settings that
    are those of no model are left out.

    Args:
        policy: With a published table, ratios of its own, or a profile.
        num_steps: Steps of the schedule, for a budget and for the part that is always computed.

    Raises:
        ProfileError: A profile cannot be read or lacks ratios.
        PolicyError: The table spans two networks and `high_steps` is not given.

    Example:
        >>> list_ratios(MagCache(ratios=(1.0, 0.9, 1.0, 0.8), branches=("cond", "uncond")), 2)
        {'ratios': [1.0, 0.9, 1.0, 0.8], 'branches': ['cond', 'uncond']}
    """
    tables = policy._tables
    rule = policy._rule_for(num_steps, policy.high_steps)
    listed = [
        table if policy.resample == "nearest" else resample_ratios(table, num_steps, "consistent")
        for table in tables.ratios.values()
    ]
    found = {name: getattr(rule, name) for name in GENERIC if hasattr(rule, name)}
    found |= {"high_steps": policy.high_steps, "shared": policy.shared}
    names = [name for name in tables.ratios if name != EVERY]
    if len(names) > 1 and not tables.interleaved and rule.experts is None:
        # listed tables count the calls of all branches: the same steps in any rounding
        found["retention"] = sum(kept(rule, Place(), num_steps)) / num_steps
    usual = {**GENERIC, "high_steps": None, "shared": False}
    return {
        "ratios": [ratio for each in zip(*listed, strict=True) for ratio in each],
        **({"branches": names} if names else {}),
        **{
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if value != usual[name]
        },
    }
