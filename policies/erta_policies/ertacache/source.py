"""How the parts of ERTACache hold their profile, and the branches it has."""

from __future__ import annotations

from erta_framework import Profile
from erta_policies.parts.profiles import ProfileSource, loaded, require

__all__ = ["ProfileSource", "branches_of", "loaded", "require"]


def branches_of(profile: Profile) -> tuple[str, ...]:
    """Names of the branches of a profile, in the order of its rows."""
    return tuple(profile.fingerprint["branches"].split(","))
