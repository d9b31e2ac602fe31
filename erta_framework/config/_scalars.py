"""What a field that holds a single value takes: one hook for each kind of type."""

from __future__ import annotations

import math
import typing
from enum import Enum
from pathlib import Path
from typing import Any

from erta_framework.config._problems import Misfit
from erta_framework.text import show_value

LARGEST = 2.0**64
"""The most of any number; `_bounds` has those of single keys."""


def as_number(value: Any, kind: Any) -> Any:
    """An int or float. Text that spells one is taken, which is how the environment gives it.

    Raises:
        Misfit: It is no number, not finite, or too large.
    """
    if issubclass(kind, Enum):
        return as_member(value, kind)
    whole = kind is int and isinstance(value, float)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and not whole:
        try:
            number = kind(value)
        except (ValueError, OverflowError):
            raise Misfit.between(value, kind) from None
        if not math.isfinite(number) or abs(number) > LARGEST:
            raise Misfit(f"is {show_value(value)}; write a finite number, at most {LARGEST:g}")
        return number
    raise Misfit.between(value, kind)


def as_text(value: Any, kind: Any) -> Any:
    """Text. A number is taken as its digits, since YAML reads `precision: 32` as a number."""
    if issubclass(kind, Enum):
        return as_member(value, kind)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise Misfit.between(value, kind)


def as_path(value: Any, kind: Any) -> Path:
    """A path, or the text of one."""
    if isinstance(value, str | Path):
        return Path(value)
    raise Misfit.between(value, kind)


def as_literal(value: Any, hint: Any) -> Any:
    """One of the choices, of the same type: True is not the choice 1."""
    for choice in typing.get_args(hint):
        if value == choice and type(value) is type(choice):
            return choice
    raise Misfit.between(value, hint)


def as_member(value: Any, cls: type[Enum]) -> Enum:
    """A member of an enum, or the value of one."""
    for member in cls:
        if value is member or (value == member.value and type(value) is type(member.value)):
            return member
    choices = ", ".join(repr(member.value) for member in cls)
    kind = type(value).__name__
    raise Misfit(f"is {show_value(value)} of type {kind}, expected one of {choices}")


def as_instance(value: Any, hint: Any) -> Any:
    """The value itself, which has to be of the class already."""
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise Misfit.between(value, hint)
