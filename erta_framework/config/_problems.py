"""What was wrong with a value, and where: from the errors that cattrs collects to one message."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

from erta_framework.config._hints import spell
from erta_framework.errors import ConfigError, ErtaError, suggest
from erta_framework.plugins import Policy, list_budgeted
from erta_framework.text import show_error, show_value

T = TypeVar("T")
PLACES = (AttributeValidationNote, IterableValidationNote)
"""Notes in which the converter keeps the place of an error."""


class Misfit(ValueError):
    """A value that a type does not take; the message goes on from the place: `steps` "is ..."."""

    @classmethod
    def between(cls, value: object, hint: Any) -> Misfit:
        """Names the value, its type and the type that was expected."""
        return cls(f"is {show_value(value)} of type {type(value).__name__}, expected {spell(hint)}")


class UnknownKey(Misfit):
    """A key that a class does not have."""


def report(make: Callable[[], T], where: str) -> T:
    """What `make` returns; the problems that the converter collected become one error.

    Raises:
        ConfigError: The first problem, with the others as notes.
        ErtaError: The first problem, where a class of ours raised it.
    """
    try:
        return make()
    except Exception as error:
        (place, first), *others = list_problems(error, where)
        found: ErtaError
        if isinstance(first, ErtaError):
            found = first
            notes = getattr(first, "__notes__", ())
            found.__notes__ = [note for note in notes if not isinstance(note, PLACES)]
            found.add_note(f"in the configuration at {place}")
        else:
            found = ConfigError(describe(place, first))
            found.__cause__ = None if isinstance(first, Misfit) else first
        for elsewhere, other in others:
            found.add_note(f"also {describe(elsewhere, other)}")
    raise found


def list_problems(error: Exception, where: str) -> Iterator[tuple[str, Exception]]:
    """Place and problem of everything that went wrong; those of a class before its fields'."""
    if isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(map(str, error.extra_fields)):
            yield where, refuse_key(key, error.cl)
    elif isinstance(error, ClassValidationError | IterableValidationError):
        placed, own = error.group_exceptions()
        for each in own:
            yield from list_problems(each, where)
        for each, note in placed:
            part = note.name if isinstance(note, AttributeValidationNote) else note.index
            missing = isinstance(each, KeyError)  # our hooks raise none: the mapping lacks the key
            problem = Misfit("is missing, and has no default") if missing else each
            yield from list_problems(problem, f"{where}.{part}")
    else:
        yield where, error


def refuse_key(key: str, cls: type) -> Misfit:
    """Why a class has no such key, and what to write instead."""
    if key == "budget" and issubclass(cls, Policy):
        return Misfit(
            "takes no budget: its computed steps are decided while it samples, or were fixed when "
            f"its profile was made; use {', '.join(list_budgeted())}, or put a policy before it "
            "that stops computing at a number of calls"
        )
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    return UnknownKey(f"unknown key {show_value(key)}; " + suggest(key, known))


def describe(place: str, problem: Exception) -> str:
    """A problem as one message."""
    if isinstance(problem, UnknownKey):
        return f"{place}: {problem}"
    if isinstance(problem, Misfit):
        return f"{place} {problem}"
    return f"{place}: {show_error(problem)}"
