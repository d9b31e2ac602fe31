"""Plain values to typed fields: nothing is guessed, and every refusal names its place.

cattrs walks the dataclasses and collects the errors with their paths. Hooks say what each kind of
type takes: those of single values are in `_scalars`, those of values with parts are here.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from cattrs import Converter
from cattrs.cols import is_mapping, mapping_structure_factory
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from erta_framework.config._hints import (
    fits_shape,
    is_enum,
    is_instance_of,
    is_literal,
    is_open,
    is_policy,
    is_record,
    is_sequence,
    is_union,
    spell,
)
from erta_framework.config._problems import Misfit, report
from erta_framework.config._scalars import (
    as_instance,
    as_literal,
    as_member,
    as_number,
    as_path,
    as_text,
)
from erta_framework.errors import ConfigError
from erta_framework.plugins import Policy
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.text import show_value

T = TypeVar("T")
Only = frozenset[str] | None
"""Third-party distributions that may be loaded; see `Catalogue`."""
Hook = Callable[[Any, Any], Any]


def construct(
    cls: type[T], options: Mapping[str, Any], where: str, only: Collection[str] | None = None
) -> T:
    """Make a dataclass from plain options.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of the wrong type; names the place,
            both values and what would be right. Further problems are notes of the error.
        ErtaError: What the class itself refuses, with a note that says where.

    Example:
        >>> from erta_framework.sampling import CFG
        >>> construct(CFG, {"scale": 4}, where="guidance.cfg")
        CFG(scale=4.0, start=0.0, stop=1.0, batched=False)
    """
    kind, limit = typing.cast(type, cls), None if only is None else frozenset(only)
    return typing.cast(T, report(lambda: make_fields_hook(kind, limit)(options, kind), where))


def convert(value: Any, hint: Any, where: str, only: Collection[str] | None = None) -> Any:
    """A plain value as a type.

    Raises:
        ConfigError: The value does not fit; see `construct`.

    Example:
        >>> convert([1, 2], tuple[float, ...], where="sigmas")
        (1.0, 2.0)
    """
    limit = None if only is None else frozenset(only)
    return report(lambda: converter_for(limit).structure(value, hint), where)


def split_name(spec: object) -> tuple[str, Mapping[str, Any]]:
    """The name and the options of `name` or `{name: {option: value}}`.

    Raises:
        Misfit: It is neither.
    """
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        (name, options), *_ = spec.items()
        if options is None or isinstance(options, Mapping):
            return str(name), options or {}
    raise Misfit(f"is {show_value(spec)}; write a name or {{name: {{option: value}}}}")


@lru_cache(maxsize=16)
def converter_for(only: Only) -> Converter:
    """The converter; its policies come from the catalogue under this limit."""
    converter = Converter(forbid_extra_keys=True, structure_fallback_factory=lambda _: as_instance)
    # these also serve their subclasses, such as the members of an IntEnum
    scalars: list[tuple[type, Hook]] = [
        (bool, as_instance),
        (int, as_number),
        (float, as_number),
        (str, as_text),
        (Path, as_path),
    ]
    for kind, hook in scalars:
        converter.register_structure_hook(kind, hook)
    hooks: list[tuple[Callable[[Any], bool], Hook]] = [
        (lambda hint: hint is type(None), as_instance),
        (is_literal, as_literal),
        (is_enum, as_member),
        (is_open, lambda value, _: value),
        (is_record, partial(as_record, only=only)),
        (is_policy, partial(as_policy, only=only)),
    ]
    for predicate, hook in hooks:
        converter.register_structure_hook_func(predicate, hook)
    converter.register_structure_hook_factory(is_mapping, make_mapping_hook)
    converter.register_structure_hook_factory(is_sequence, make_sequence_hook)
    converter.register_structure_hook_factory(is_union, make_union_hook)
    return converter


def as_policy(value: Any, base: type[Policy], only: Only) -> Policy:
    """A policy of the catalogue from its name or `{name: {option: value}}`, or one as it is.

    Raises:
        Misfit: It is neither, or a policy of another class.
        RegistryError: The policy is not installed.
    """
    if isinstance(value, base):
        return value
    name, options = split_name(value)
    cls = policy_catalogue(only).load(name)
    if not issubclass(cls, base):
        raise Misfit(f"is the policy {name!r}, a {cls.__name__}; expected {spell(base)}")
    try:
        return typing.cast(Policy, make_fields_hook(cls, only)(options, cls))
    except ClassValidationError as error:
        error.add_note(AttributeValidationNote(f"policy {name}", name, cls))
        raise ClassValidationError(f"policy {name}", [error], base) from None


def as_record(value: Any, cls: type, only: Only) -> Any:
    """A dataclass from the mapping of its fields, or one as it is.

    Raises:
        Misfit: It is neither.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise Misfit.between(value, cls)
    return make_fields_hook(cls, only)(value, cls)


@lru_cache(maxsize=512)
def make_fields_hook(cls: type, only: Only) -> Hook:
    """Makes a dataclass from the mapping of its fields.

    Raises:
        ConfigError: The types of its fields cannot be read.
    """
    try:
        return make_dict_structure_fn(cls, converter_for(only))
    except NameError as error:
        raise ConfigError(
            f"the types of {cls.__name__} cannot be read ({error}); import them outside of "
            "TYPE_CHECKING"
        ) from error


def make_mapping_hook(hint: Any, converter: Converter) -> Hook:
    """A hook that converts the keys and values of a mapping."""
    structure = mapping_structure_factory(hint, converter, structure_to=dict)

    def as_mapping(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Misfit.between(value, hint)
        return structure(value, hint)

    return as_mapping


def make_sequence_hook(hint: Any, converter: Converter) -> Hook:
    """A hook that converts the items of a list or tuple, and collects what is wrong with each."""

    def as_sequence(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise Misfit.between(value, hint)
        items, errors = [], []
        for index, (item, kind) in enumerate(zip(value, list_types(hint, value), strict=True)):
            try:
                items.append(converter.structure(item, kind))
            except Exception as error:
                error.add_note(IterableValidationNote(f"item {index}", index, kind))
                errors.append(error)
        if errors:
            raise IterableValidationError(f"items of {spell(hint)}", errors, hint)
        return items if typing.get_origin(hint) is list else tuple(items)

    return as_sequence


def list_types(hint: Any, value: Sequence[Any]) -> Sequence[Any]:
    """The type of each item, as `tuple[T, ...]`, `tuple[A, B]`, `list[T]` or `Sequence[T]` say.

    Raises:
        Misfit: A fixed tuple has another length.
    """
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple or arguments[-1] is Ellipsis:
        return [arguments[0]] * len(value)
    if len(value) != len(arguments):
        raise Misfit(f"has {len(value)} items, expected {len(arguments)}")
    return arguments


def make_union_hook(hint: Any, converter: Converter) -> Hook:
    """A hook that converts to the first member of a union that takes the value.

    A mapping, a list or the name of a policy goes to the member that is written so, whose message
    is the precise one.
    """
    members = typing.get_args(hint)

    def as_union(value: Any, _: Any) -> Any:
        if any(map(is_open, members)) or is_instance_of(value, members):
            return value
        for member in members:
            if fits_shape(member, value, members):
                return converter.structure(value, member)
        for member in members:
            try:
                return converter.structure(value, member)
            except (Misfit, ClassValidationError, IterableValidationError):
                continue
        raise Misfit.between(value, hint)

    return as_union
