"""Errors of erta_framework.

Every message names who is at fault, where, the values that disagree and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial

from erta_framework.text import escape_line


class ErtaError(Exception):
    """Base of every error that erta_framework raises on purpose."""


class PolicyError(ErtaError):
    """A policy broke the contract of a hook, or raised inside one."""


class BudgetError(PolicyError):
    """A policy cannot do as little work as its budget has.

    Attributes:
        least: The least work that it can do, in network calls of each branch.

    Example:
        >>> BudgetError("25 were asked for, 30 are left", least=30.0).least
        30.0
    """

    def __init__(self, message: str, *, least: float) -> None:
        super().__init__(message)
        self.least = least

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return partial(type(self), least=self.least), self.args


class ConflictError(ErtaError):
    """Two policies claim what only one may own, such as the interval."""


class CapabilityError(ErtaError):
    """A policy needs something that this solver, model or driver does not offer."""


class ProtocolError(ErtaError):
    """A driver called the verbs of a session out of order or with impossible values."""


class InputError(ErtaError, ValueError):
    """Prompts, latents or settings that cannot be sampled."""


class NonFiniteError(ErtaError):
    """A reused output, or one that is calibrated on, was NaN or infinite."""


class ProfileError(ErtaError):
    """A profile file that cannot be read, or that cannot serve what was asked of it."""


class MissingProfileError(ProfileError, PolicyError):
    """A policy reads a profile, and was given none, nor anything that stands for one."""


class ProfileMismatchError(ProfileError):
    """A profile was calibrated for another model, grid, guidance or shape than this run's."""


class RegistryError(ErtaError):
    """A name that no installed distribution provides, or that two provide."""


class ConfigError(ErtaError, ValueError):
    """A configuration that names an unknown key or holds a value of the wrong type."""


class UnusedWarning(UserWarning):
    """What was attached to a pipeline was never used; nobody would notice otherwise."""


LISTED = 30
"""Names that a message lists, at the most."""


def suggest(name: str, known: Iterable[str]) -> str:
    """What to write instead of `name`: the close matches, else the first of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return "known: " + (", ".join(map(escape_line, names[:LISTED])) if names else "none") + more
