"""The form of a module's output: its containers, and the shapes of the tensors in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import PolicyError

LEAF = object()
"""Stands for a tensor in a structure."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What a module returned in one visit, without the values.

    Attributes:
        structure: Its containers, with `LEAF` for each tensor.
        shapes: Shape, type and device of each tensor, in order.
        phantoms: Phantoms made so far, by their number of rows.
    """

    structure: Any
    shapes: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
    phantoms: dict[int | None, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, output: Any) -> Form:
        """The form of an output."""
        tensors: list[Tensor] = []
        structure = take_tensors(output, tensors)
        return cls(structure, tuple((t.shape, t.dtype, t.device) for t in tensors))

    def build(self, tensors: Sequence[Tensor]) -> Any:
        """An output of this form."""
        return put_tensors(self.structure, iter(tensors))

    def check(self, shapes: Sequence[torch.Size], batch: int, rows: int | None, owner: str) -> None:
        """Refuse tensors of other shapes than those of this form.

        Raises:
            PolicyError: Names the owner and both.
        """
        own = [fit_rows(shape, batch, rows) for shape, _, _ in self.shapes]
        if list(shapes) != own:
            raise PolicyError(
                f"{owner} answered with {[tuple(s) for s in shapes]}, where the module returns "
                f"{[tuple(s) for s in own]}; return what run() would"
            )

    def phantom(self, batch: int, rows: int | None) -> Any:
        """An output of this form that nobody may use: NaN where the type has one, without memory.

        Args:
            batch: Rows of the whole batch.
            rows: Rows of this call, where it is part of the batch.
        """
        made = self.phantoms.get(rows)
        if made is None:
            made = self.phantoms[rows] = self.build(
                [
                    make_phantom(fit_rows(shape, batch, rows), dtype, device)
                    for shape, dtype, device in self.shapes
                ]
            )
        return made


def fit_rows(shape: torch.Size, batch: int, rows: int | None) -> torch.Size:
    """The shape of part of a batch; a shape without the batch stays."""
    if rows is None or not shape or shape[0] != batch:
        return shape
    return torch.Size((rows, *shape[1:]))


def make_phantom(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One element seen as a whole tensor."""
    value = math.nan if dtype.is_floating_point or dtype.is_complex else 0
    return torch.full((), value, dtype=dtype, device=device).expand(shape)


def take_tensors(value: Any, found: list[Tensor]) -> Any:
    """The containers of a value with `LEAF` in the place of tensors, which go to `found`."""
    if isinstance(value, Tensor):
        found.append(value)
        return LEAF
    if isinstance(value, Mapping):
        entries = {key: take_tensors(item, found) for key, item in value.items()}
        return entries if type(value) is dict else (type(value), entries)
    if isinstance(value, list | tuple):
        return type(value), [take_tensors(item, found) for item in value]
    return value


def put_tensors(structure: Any, tensors: Any) -> Any:
    """The inverse of `take_tensors`; `tensors` is an iterator."""
    if structure is LEAF:
        return next(tensors)
    if isinstance(structure, dict):
        return {key: put_tensors(item, tensors) for key, item in structure.items()}
    if isinstance(structure, tuple) and len(structure) == 2 and isinstance(structure[0], type):
        kind, parts = structure
        if isinstance(parts, dict):
            return kind(**{key: put_tensors(item, tensors) for key, item in parts.items()})
        items = [put_tensors(item, tensors) for item in parts]
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    return structure


def list_tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested containers, in order."""
    found: list[Tensor] = []
    take_tensors(value, found)
    return found
