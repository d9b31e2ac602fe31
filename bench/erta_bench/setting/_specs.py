"""Policies by name and options, before the profile that they need exists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from erta_framework.calibration import Profile
from erta_framework.config import build_policies
from erta_framework.plugins import Policy

PROFILE = "<profile>"
"""Stands in the options of a policy for the profile that is calibrated when the row runs."""

Spec = str | Mapping[str, Mapping[str, Any]]
"""A policy's name, or its name and options, as a configuration file has them."""


def build_policy(spec: Spec, profile: Profile | None) -> Policy:
    """Build a policy, with the profile where its options have `PROFILE`.

    Raises:
        RegistryError: The policy is not installed.
    """
    named = {spec: {}} if isinstance(spec, str) else spec
    ((name, options),) = named.items()
    wanted = {key: profile for key, value in options.items() if value == PROFILE}
    plain = {key: value for key, value in options.items() if key not in wanted}
    return replace(_build_without_profile(name, json.dumps(plain, sort_keys=True)), **wanted)


@lru_cache(maxsize=256)
def _build_without_profile(name: str, options: str) -> Policy:
    """A policy as the catalogue makes it.

    It is kept, since looking a name up reads the metadata of every installed distribution.
    """
    (policy,) = build_policies([{name: json.loads(options)}])
    return policy
