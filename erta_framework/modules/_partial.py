"""Runs a module on some of its samples, or on some of its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError
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
            f"{name} {shape} does not clearly have one row for each of {batch}; KEEP it for all"
        )

    chosen = {name: select(name, value) for name, value in named.items()}
    positional = [chosen[name] for name in names[: len(args)]]
    rest = {name: chosen[name] for name in kwargs}
    return list_tensors(run(*positional, **rest))


def run_tokens(
    call: ModuleCall,
    run: Run,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    index: Tensor,
    old: Sequence[Tensor],
) -> tuple[Tensor, float]:
    """Run a module on some tokens: its output with the others as they were, and the share that ran.

    Args:
        call: The module.
        run: Runs it.
        args: Its arguments.
        kwargs: Its keyword arguments.
        index: Places of the tokens, `[K]` or `[B, K]`.
        old: Its kept output, `[B, N, D]`.

    Raises:
        CapabilityError: It does not map one tensor of tokens to another.
    """
    inputs = bind_tensors(call.module, args, kwargs)
    x = next(iter(inputs.values()))
    if len(inputs) != 1 or len(old) != 1 or x.ndim != 3 or old[0].shape[:2] != x.shape[:2]:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        raise CapabilityError(
            f"{call.path} ({type(call.module).__name__}) cannot run on some tokens: it takes "
            f"{shapes} and returns {[tuple(t.shape) for t in old]}; it must map tokens [B, N, C] "
            "to [B, N, D] one by one, as an MLP does"
        )
    places = index.to(x.device)
    places = places.expand(x.shape[0], -1) if places.ndim == 1 else places
    chosen = x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    replaced = [chosen if value is x else value for value in args]
    rest = {name: chosen if value is x else value for name, value in kwargs.items()}
    (fresh,) = list_tensors(run(*replaced, **rest))
    target = places.unsqueeze(-1).expand(-1, -1, fresh.shape[-1])
    return old[0].scatter(1, target, fresh), places.shape[1] / x.shape[1]
