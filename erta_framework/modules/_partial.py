"""Runs a module on some of its samples, or on some of its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules._forms import list_tensors
from erta_framework.modules._gate import Run
from erta_framework.modules._module_call import ModuleCall
from erta_framework.modules._streams import bind_tensors, list_parameters

POSITION = re.compile(r"(^|_)(ids|rotary|rope|freqs|pos|position)")
"""Parameters whose tensors may hold positions, not samples."""


def run_rows(
    call: ModuleCall,
    run: Run,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rows: Sequence[int],
    batch: int,
) -> list[Tensor]:
    """Run a module on the samples at these places.

    Args:
        call: The module.
        run: Runs it.
        args: Its arguments.
        kwargs: Its keyword arguments.
        rows: The places.
        batch: How many samples it is given.

    Raises:
        CapabilityError: An argument does not say which of its rows belong to a sample.
    """
    positional, named = take_rows(call, args, kwargs, rows, batch)
    return list_tensors(run(*positional, **named))


def take_rows(
    call: ModuleCall,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rows: Sequence[int],
    batch: int,
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a module for the samples at these places.

    Raises:
        CapabilityError: An argument does not say which of its rows belong to a sample.
    """
    names = list_parameters(type(call.module).forward)
    named = {**dict(zip(names, args, strict=False)), **kwargs}

    def select(name: str, value: Any) -> Any:
        if not list_tensors(value) or (isinstance(value, Tensor) and not value.ndim):
            return value
        if isinstance(value, Tensor) and value.shape[0] == 1 != batch:
            return value
        if isinstance(value, Tensor) and value.shape[0] == batch and not POSITION.search(name):
            return value.index_select(0, torch.tensor(rows, device=value.device))
        if POSITION.search(name) and all(t.shape[:1] != (batch,) for t in list_tensors(value)):
            return value  # such as the rotary embeddings of the tokens of any sample
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise CapabilityError(
            f"{call.path} ({type(call.module).__name__}) cannot run on some samples: its argument "
            f"{name} {shape} does not clearly have one row for each of {batch}; run all of them"
        )

    chosen = {name: select(name, value) for name, value in named.items()}
    positional = [chosen[name] for name in names[: len(args)]]
    return positional, {name: chosen[name] for name in kwargs}


@dataclass(frozen=True, slots=True)
class TokenPart:
    """What a module made of some tokens.

    Attributes:
        fresh: Its output for them, `[B, K, D]`.
        places: Their places, `[B, K]`.
        share: The part of all tokens that they are.
    """

    fresh: Tensor
    places: Tensor
    share: float

    def put_into(self, whole: Tensor) -> Tensor:
        """An output of all tokens, `[B, N, D]`, with these replaced."""
        target = self.places.unsqueeze(-1).expand(-1, -1, self.fresh.shape[-1])
        return whole.scatter(1, target, self.fresh)


def run_tokens(
    call: ModuleCall,
    run: Run,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    index: Tensor,
    shapes: Sequence[torch.Size],
    *,
    reads_other: bool = False,
) -> TokenPart:
    """Run a module on some tokens.

    Args:
        call: The module.
        run: Runs it.
        args: Its arguments.
        kwargs: Its keyword arguments.
        index: Places of the tokens, `[K]` or `[B, K]`.
        shapes: Of the tensors that it returns, `[B, N, D]`.
        reads_other: Whether it reads another sequence besides, as a cross-attention does: tokens
            are then its queries, and the other arguments stay whole.

    Raises:
        CapabilityError: It does not map one tensor of tokens to another.
        PolicyError: The places are not those of so many samples.
    """
    inputs = bind_tensors(call.module, args, kwargs)
    x = next(iter(inputs.values()))
    others = (*args, *kwargs.values())
    alone = len(inputs) == 1
    if reads_other:
        alone = not has_row_for_each(others, inputs, x.shape[1])
    if not alone or len(shapes) != 1 or x.ndim != 3 or shapes[0][:2] != x.shape[:2]:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise CapabilityError(
            f"{call.path} ({type(call.module).__name__}) cannot run on some tokens: it takes "
            f"{given} and returns {[tuple(shape) for shape in shapes]}; it must map tokens "
            "[B, N, C] to [B, N, D] one by one, as an MLP does"
        )
    if index.ndim not in (1, 2) or (index.ndim == 2 and len(index) not in (1, x.shape[0])):
        raise PolicyError(
            f"Tokens got places {tuple(index.shape)} at {call.path}, where {x.shape[0]} samples "
            f"run; give [K], or [{x.shape[0]}, K]"
        )
    places = index.to(x.device).expand(x.shape[0], -1)
    chosen = x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    replaced = [chosen if value is x else value for value in args]
    rest = {name: chosen if value is x else value for name, value in kwargs.items()}
    (fresh,) = list_tensors(run(*replaced, **rest))
    return TokenPart(fresh, places, places.shape[1] / x.shape[1])


def has_row_for_each(args: Sequence[Any], inputs: Mapping[str, Tensor], tokens: int) -> bool:
    """Whether an argument beside the tokens may have a row for each: a mask, or positions."""
    nested = any(list_tensors(value) for value in args if not isinstance(value, Tensor))
    masks = (value for name, value in inputs.items() if "mask" in name)
    return nested or any(tokens in mask.shape[1:-1] for mask in masks)
