"""Questions about type hints."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union

from cattrs.cols import is_mapping

from erta_framework.plugins import Policy


def is_union(hint: Any) -> bool:
    """Whether a type hint is a union."""
    return typing.get_origin(hint) in (Union, types.UnionType)


def is_literal(hint: Any) -> bool:
    """Whether a type hint is a choice of values."""
    return typing.get_origin(hint) is Literal


def is_enum(hint: Any) -> bool:
    """Whether a type hint is an enum."""
    return isinstance(hint, type) and issubclass(hint, Enum)


def is_policy(hint: Any) -> bool:
    """Whether a type hint is a class of policies."""
    return isinstance(hint, type) and issubclass(hint, Policy)


def is_open(hint: Any) -> bool:
    """Whether a type hint takes every value: `Any` or a protocol."""
    return hint is Any or bool(getattr(hint, "_is_protocol", False))


def is_record(hint: Any) -> bool:
    """Whether a type hint is a dataclass; policies are found by name instead."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and not is_policy(hint)


def is_sequence(hint: Any) -> bool:
    """Whether a type hint is a list, a tuple or a sequence of something."""
    return typing.get_origin(hint) in (tuple, list, Sequence)


def is_instance_of(value: object, members: Sequence[Any]) -> bool:
    """Whether a value is of one of these classes as it is; a bool is no int."""
    if isinstance(value, bool) and bool not in members:
        return False
    return isinstance(value, tuple(member for member in members if isinstance(member, type)))


def fits_shape(member: Any, value: object, members: Sequence[Any]) -> bool:
    """Whether a member of a union is written in the form of this value: mapping, list or name."""
    if isinstance(value, Mapping):
        if is_record(member):
            return member is find_record(members, value)
        return is_policy(member) or is_mapping(member)
    if isinstance(value, list | tuple):
        return is_sequence(member)
    return isinstance(value, str) and is_policy(member) and str not in members


def find_record(members: Sequence[Any], value: Mapping[Any, Any]) -> Any:
    """The dataclass among the members of a union that has the most of these keys as fields."""
    records = [member for member in members if is_record(member)]
    return max(records, key=lambda record: sum(f.name in value for f in dataclasses.fields(record)))


def spell(hint: Any) -> str:
    """A type hint as a person writes it.

    Example:
        >>> spell(tuple[Policy, ...] | None)
        'tuple[Policy, ...] | None'
    """
    if is_union(hint):
        return " | ".join(map(spell, typing.get_args(hint)))
    if is_sequence(hint):
        items = ", ".join("..." if a is Ellipsis else spell(a) for a in typing.get_args(hint))
        return f"{typing.get_origin(hint).__name__}[{items}]"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
