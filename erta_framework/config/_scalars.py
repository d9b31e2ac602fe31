"""What a field that holds a single value takes: one hook for each kind of type."""

from __future__ import annotations

import typing
from enum import Enum
from pathlib import Path
from typing import Any

from erta_framework.config._problems import Misfit


def as_number(value: Any, kind: Any) -> Any:
    """An int or float. Text that spells one is taken, which is how the environment gives it."""
    if issubclass(kind, Enum):
        return as_member(value, kind)
    whole = kind is int and isinstance(value, float)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and not whole:
        try:
            return kind(value)
        except ValueError:
            pass
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
    raise Misfit(f"is {value!r} of type {type(value).__name__}, expected one of {choices}")


def as_instance(value: Any, hint: Any) -> Any:
    """The value itself, which has to be of the class already."""
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise Misfit.between(value, hint)
