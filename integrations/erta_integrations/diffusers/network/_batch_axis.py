"""Finds which arguments of a network call hold one row per sample, so that some samples can run.

An argument gets a selector, which takes rows of it, or None, which means that all samples share it.
Whatever cannot be decided from shape and name is refused: a wrong guess would give wrong samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from erta_integrations.diffusers.network._arguments import LATENTS
from erta_integrations.diffusers.network._output_spec import OutputSpec, Relation

POSITION = re.compile(r"(?<!time)(^|_)(ids|rotary|rope|freqs|pos|position)")
Selector = Callable[[Any], Any]
"""Takes the rows `[R]` of one argument."""


class NoBatchAxis(Exception):
    """An argument's batch axis is ambiguous; the message names the argument."""


def find_row_selector(
    arguments: Mapping[str, Any], batch: int
) -> Callable[[Tensor], dict[str, Any]] | str:
    """Find how to take some samples of a network's arguments; a string says why it cannot be done.

    A tensor whose first size is the batch is taken row by row. Numbers, single rows and tables of
    positions are shared by all samples.

    Args:
        arguments: The arguments by name.
        batch: Number of samples in the latents.
    """
    try:
        found = {name: find_selector(name, value, batch) for name, value in arguments.items()}
    except NoBatchAxis as reason:
        return str(reason)
    return lambda rows: {
        name: apply_selector(found[name], value, rows) for name, value in arguments.items()
    }


def find_selector(name: str, value: Any, batch: int) -> Selector | None:
    """Find the selector of one argument; None where all samples share it.

    Raises:
        NoBatchAxis: It is ambiguous.
    """
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return None
    if isinstance(value, Tensor):
        return find_tensor_selector(name, value, batch)
    if isinstance(value, Mapping):
        entries = {k: find_selector(f"{name}.{k}", item, batch) for k, item in value.items()}
        return combine_selectors(entries, value)
    if isinstance(value, list | tuple):
        return find_list_selector(name, value, batch)
    raise NoBatchAxis(f"its argument {name} is {type(value).__name__}")


def find_tensor_selector(name: str, value: Tensor, batch: int) -> Selector | None:
    """A tensor holds the rows of a batch, one row for all, or a table of positions."""
    shape = tuple(value.shape)
    if value.ndim == 0 or shape[0] == 1:
        return None
    if POSITION.search(name):
        if shape[0] == batch:
            raise NoBatchAxis(f"its argument {name} {shape} may hold positions or samples")
        if value.ndim < 3:
            return None
    if value.ndim > 3 and shape[:2] == (batch, batch) and name not in LATENTS:
        raise NoBatchAxis(f"its argument {name} {shape} has the batch of {batch} on two axes")
    if shape[0] == batch:
        return lambda rows: value.index_select(0, rows.to(value.device))
    raise NoBatchAxis(f"its argument {name} {shape} does not begin with the batch of {batch}")


def find_list_selector(
    name: str, value: list[Any] | tuple[Any, ...], batch: int
) -> Selector | None:
    """A list holds one entry per sample, or several arguments in their own right."""
    if not value:
        return None
    plain = all(isinstance(item, bool | int | float | str | None) for item in value)
    if plain and (len(value) != batch or POSITION.search(name)):
        return None
    if plain:
        raise NoBatchAxis(f"its argument {name} of {batch} numbers may be one a sample")
    if all(isinstance(item, list | tuple) and not has_tensors(item) for item in value):
        # nested numbers, such as the sizes of each sample's images
        return None if len(value) != batch else make_entry_selector(type(value), value)
    own = {key: try_selector(f"{name}.{key}", item, batch) for key, item in enumerate(value)}
    refused = [reason for reason in own.values() if isinstance(reason, NoBatchAxis)]
    if len(value) == batch:
        # tensors without a batch axis of their own: the list itself is the batch
        if not POSITION.search(name) and len(refused) == len(value):
            return make_entry_selector(type(value), value)
        raise NoBatchAxis(f"its argument {name} of {batch} tensors may be one a sample")
    if refused:
        raise refused[0]
    return combine_selectors(
        {key: item for key, item in own.items() if callable(item) or item is None}, value
    )


def make_entry_selector(kind: type, value: list[Any] | tuple[Any, ...]) -> Selector:
    """Takes entries of a list that has one per sample."""
    return lambda rows: kind(value[row] for row in rows.tolist())


def has_tensors(value: Any) -> bool:
    """Whether a tensor lies anywhere in nested lists and mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(has_tensors, value))
    return isinstance(value, Tensor)


def try_selector(name: str, value: Any, batch: int) -> Selector | NoBatchAxis | None:
    """`find_selector`, with the refusal returned instead of raised."""
    try:
        return find_selector(name, value, batch)
    except NoBatchAxis as reason:
        return reason


def combine_selectors(selectors: Mapping[Any, Selector | None], value: Any) -> Selector | None:
    """A selector that takes rows of every entry of a mapping or list."""
    if all(select is None for select in selectors.values()):
        return None

    def select(rows: Tensor) -> Any:
        if isinstance(value, Mapping):
            pairs = {k: apply_selector(selectors[k], item, rows) for k, item in value.items()}
            return pairs if type(value) is dict else type(value)(**pairs)
        entries = enumerate(value)
        return type(value)(apply_selector(selectors[k], item, rows) for k, item in entries)

    return select


def apply_selector(select: Selector | None, value: Any, rows: Tensor) -> Any:
    """The rows of one argument, or all of it where samples share it."""
    return value if select is None else select(rows)


def explain_undivided(spec: OutputSpec) -> str | None:
    """Why outputs of this form cannot be merged from rows; None if they can."""
    if spec.others and any(item is not None for item in spec.others):
        return "it returns more than one output"
    if spec.rule.relation is Relation.OUTPUT:
        return "its output has another shape than its latents"
    return None


def merge_rows(spec: OutputSpec, part: OutputSpec, rows: Tensor) -> OutputSpec:
    """The spec of the whole batch, after the samples at `rows` were computed again.

    Only `rest` is per sample: its rows are replaced by those of `part`.
    """
    if spec.rest is None or part.rest is None:
        return spec
    return replace(spec, rest=spec.rest.index_copy(0, rows.to(spec.rest.device), part.rest))
