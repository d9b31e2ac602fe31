"""Which arguments of a network call hold one row a sample, so that samples can be run alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from erta_integrations.diffusers.network._arguments import LATENTS
from erta_integrations.diffusers.network._output_spec import OutputForm, Relation

POSITION = re.compile(r"(?<!time)(^|_)(ids|rotary|rope|freqs|pos|position)")
Select = Callable[[Any], Any]


class NoBatchAxis(Exception):
    """An argument's batch axis cannot be told; the message names it."""


def splitter(arguments: Mapping[str, Any], batch: int) -> Callable[[Tensor], dict[str, Any]] | str:
    """How to take some samples of a network's arguments, or why that cannot be told.

    A tensor whose first size is the batch is taken row by row; numbers, single rows and tables of
    positions are shared by all samples. Everything else is refused rather than guessed.

    Args:
        arguments: The arguments by name.
        batch: Number of samples in the latents.
    """
    try:
        taken = {name: selection(name, value, batch) for name, value in arguments.items()}
    except NoBatchAxis as reason:
        return str(reason)
    return lambda rows: {name: one(taken[name], value, rows) for name, value in arguments.items()}


def selection(name: str, value: Any, batch: int) -> Select | None:
    """Takes rows of one argument; None where all samples share it.

    Raises:
        NoBatchAxis: It cannot be told.
    """
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return None
    if isinstance(value, Tensor):
        return of_tensor(name, value, batch)
    if isinstance(value, Mapping):
        return joined(
            {key: selection(f"{name}.{key}", item, batch) for key, item in value.items()}, value
        )
    if isinstance(value, list | tuple):
        return of_list(name, value, batch)
    raise NoBatchAxis(f"its argument {name} is {type(value).__name__}")


def of_tensor(name: str, value: Tensor, batch: int) -> Select | None:
    """A tensor: rows of a batch, one row for all, or a table of positions."""
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


def of_list(name: str, value: list[Any] | tuple[Any, ...], batch: int) -> Select | None:
    """A list: one entry a sample, or several arguments of their own."""
    if not value:
        return None
    plain = all(isinstance(item, bool | int | float | str | None) for item in value)
    if plain and (len(value) != batch or POSITION.search(name)):
        return None
    if plain:
        raise NoBatchAxis(f"its argument {name} of {batch} numbers may be one a sample")
    if all(isinstance(item, list | tuple) and not tensors_in(item) for item in value):
        if len(value) != batch:
            return None
        kind = type(value)  # such as the sizes of each sample's images
        return lambda rows: kind(value[row] for row in rows.tolist())
    own = {key: attempt(f"{name}.{key}", item, batch) for key, item in enumerate(value)}
    refused = [reason for reason in own.values() if isinstance(reason, NoBatchAxis)]
    if len(value) == batch:
        if not POSITION.search(name) and len(refused) == len(value):
            kind = type(value)
            return lambda rows: kind(value[row] for row in rows.tolist())
        raise NoBatchAxis(f"its argument {name} of {batch} tensors may be one a sample")
    if refused:
        raise refused[0]
    return joined({key: item for key, item in own.items() if callable(item) or item is None}, value)


def tensors_in(value: Any) -> bool:
    """Whether a tensor lies anywhere in nested lists and mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(tensors_in, value))
    return isinstance(value, Tensor)


def attempt(name: str, value: Any, batch: int) -> Select | NoBatchAxis | None:
    """`selection`, with the refusal returned."""
    try:
        return selection(name, value, batch)
    except NoBatchAxis as reason:
        return reason


def joined(taken: Mapping[Any, Select | None], value: Any) -> Select | None:
    """Takes rows of every entry of a mapping or list."""
    if all(select is None for select in taken.values()):
        return None

    def take(rows: Tensor) -> Any:
        if isinstance(value, Mapping):
            pairs = {key: one(taken[key], item, rows) for key, item in value.items()}
            return pairs if type(value) is dict else type(value)(**pairs)
        return type(value)(one(taken[key], item, rows) for key, item in enumerate(value))

    return take


def one(select: Select | None, value: Any, rows: Tensor) -> Any:
    """One entry, or its rows."""
    return value if select is None else select(rows)


def unsplit(form: OutputForm) -> str | None:
    """Why an output of this form cannot be put together from rows; None if it can."""
    if form.others and any(item is not None for item in form.others):
        return "it returns more than one output"
    if form.rule.relation is Relation.OUTPUT:
        return "its output has another shape than its latents"
    return None


def with_rows(form: OutputForm, part: OutputForm, rows: Tensor) -> OutputForm:
    """The form of the whole batch, with what has no residual taken from `part` at `rows`."""
    if form.rest is None or part.rest is None:
        return form
    return replace(form, rest=form.rest.index_copy(0, rows.to(form.rest.device), part.rest))
