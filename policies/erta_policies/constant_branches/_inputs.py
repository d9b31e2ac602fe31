"""`Inputs`: what a module was given, and whether it is given the same again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, torch.Size, type(None))


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A tensor as it was.

    Attributes:
        tensor: The tensor itself, which keeps its memory from being used for another.
        version: How often it had been written into; None where that is not counted.
        copy: Its values then, where values are compared.
    """

    tensor: Tensor
    version: int | None
    copy: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, copies: bool) -> Held:
        """A tensor as it is now."""
        return cls(tensor, read_version(tensor), tensor.clone() if copies else None)

    def is_same(self, other: Tensor) -> bool:
        """Whether another tensor certainly has these values; may read them back if copied."""
        if self._shares_memory(other) and self.version == read_version(other) is not None:
            return True
        if self.copy is None or not has_same_form(self.tensor, other):
            return False
        return torch.equal(self.copy, other)

    def _shares_memory(self, other: Tensor) -> bool:
        """Whether it is the tensor itself, or the same view of the same tensor."""
        own = self.tensor
        if own is other:
            return True
        if not has_same_form(own, other) or own.storage_offset() != other.storage_offset():
            return False
        return own._base is not None and own._base is other._base


@dataclass(slots=True)
class Inputs:
    """What a module was given in one visit, and its weights then.

    Attributes:
        structure: The arguments, with `Held` in the place of tensors.
        weights: Its parameters and buffers.
    """

    structure: Any
    weights: tuple[Held, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, module: nn.Module, args: Any, kwargs: Any, copies: bool) -> Inputs:
        """What it is given now."""
        weights = tuple(Held.of(tensor, copies=False) for tensor in list_weights(module))
        return cls(hold((args, kwargs), copies), weights)

    def is_same(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether it certainly is given the same, with the same weights."""
        weights = list_weights(module)
        return (
            len(weights) == len(self.weights)
            and all(own.is_same(one) for own, one in zip(self.weights, weights, strict=True))
            and matches(self.structure, (args, kwargs))
        )


def list_weights(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def hold(value: Any, copies: bool) -> Any:
    """The containers of a value, with `Held` in the place of tensors."""
    if isinstance(value, Tensor):
        return Held.of(value, copies)
    if isinstance(value, Mapping):
        return {key: hold(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hold(item, copies) for item in value]
    return value


def matches(held: Any, value: Any) -> bool:
    """Whether a value certainly is what was held; of an unknown object nothing is certain."""
    if isinstance(held, Held):
        return isinstance(value, Tensor) and held.is_same(value)
    if isinstance(held, dict):
        return (
            isinstance(value, Mapping)
            and held.keys() == value.keys()
            and all(matches(item, value[key]) for key, item in held.items())
        )
    if isinstance(held, list):
        return (
            isinstance(value, Sequence)
            and len(held) == len(value)
            and all(matches(item, one) for item, one in zip(held, value, strict=True))
        )
    return isinstance(held, PLAIN) and type(held) is type(value) and held == value


def read_version(tensor: Tensor) -> int | None:
    """How often a tensor was written into; None where that is not counted."""
    return None if tensor.is_inference() else tensor._version


def has_same_form(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape, layout, type and device."""
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.device == other.device
        and one.stride() == other.stride()
    )
