"""Compatibility: see the documentation."""

from erta_framework.compatibility._compatibility import OWN, Driver, Role, overview, role_of

__all__ = ["OWN", "Driver", "Role", "overview", "role_of"]
