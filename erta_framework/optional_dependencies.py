"""Optional dependencies: a clear error where one is missing."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

from erta_framework.errors import ErtaError


class MissingExtraError(ErtaError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


PACKAGES = {"PIL": "pillow"}
"""Packages of modules that have another name."""
OURS = re.compile(r"([\w.-]+)[^;]*;.*extra == ['\"]([\w-]+)['\"]")
"""A line of the metadata: a package, and the extra that brings it."""


def find_extra(module: str, prefer: str = "") -> str | None:
    """The smallest extra of erta-framework that installs a module; None without one.

    Args:
        module: Name of a module that is missing.
        prefer: An extra to name before smaller ones, where it installs the module.

    Example:
        >>> find_extra("no_such_module") is None
        True
    """
    try:
        lines = requires("erta-framework") or []
    except PackageNotFoundError:
        return None
    top = module.partition(".")[0]
    package = PACKAGES.get(top, top)
    extras: dict[str, set[str]] = {}
    for found in filter(None, map(OURS.match, lines)):
        extras.setdefault(found[2], set()).add(re.sub(r"[-_.]+", "_", found[1]).lower())
    fitting = [name for name, held in extras.items() if package.lower() in held]
    if prefer in fitting:
        return prefer
    return min(fitting, key=lambda name: len(extras[name]), default=None)


def require_extra(module: str, extra: str, wanted_by: str) -> None:
    """Refuse to go on without an optional dependency.

    Args:
        module: Import name of the dependency.
        extra: Extra of erta-framework that installs it.
        wanted_by: Who needs it.

    Raises:
        MissingExtraError: It is not installed.

    Example:
        >>> require_extra("json", extra="report", wanted_by="this example")
    """
    if find_spec(module) is None:
        raise MissingExtraError(
            f"{wanted_by} needs {module}, which is not installed; pip install "
            f'"erta-framework[{extra}]"'
        )
