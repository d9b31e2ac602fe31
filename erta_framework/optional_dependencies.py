"""Optional dependencies: a clear error where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from erta_framework.errors import ErtaError


class MissingExtraError(ErtaError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


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
