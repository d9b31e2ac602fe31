"""Which input of a block each of its outputs continues, so that it can be passed through."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from erta_framework.errors import CapabilityError


@lru_cache(maxsize=256)
def list_parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters of a module's `forward`, without `self`."""
    return tuple(inspect.signature(forward).parameters)[1:]


@lru_cache(maxsize=256)
def find_returned_names(forward: Callable[..., Any]) -> list[tuple[str, ...]]:
    """Find the names in each `return` of a block's `forward`; `""` for any other expression."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(forward)))
    except (OSError, TypeError):
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Return) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            found.append(tuple(v.id if isinstance(v, ast.Name) else "" for v in values))
    return found


def bind_tensors(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors among the arguments of a call, by name, in the order of the parameters."""
    names = list_parameters(type(module).forward)
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    order = sorted(named, key=lambda name: names.index(name) if name in names else len(names))
    return {name: named[name] for name in order if isinstance(named[name], Tensor)}


def match_streams(
    module: nn.Module, path: str, inputs: Mapping[str, Tensor], outputs: Sequence[Tensor]
) -> tuple[str, ...]:
    """The name of the input that each output continues.

    The names in `return` decide, where they are names of parameters. Otherwise an output continues
    the one input of its shape; a single output, the first input of its shape.

    Args:
        module: The block.
        path: Its path, for the message.
        inputs: Its tensor arguments by name, in order.
        outputs: The tensors that it returned.

    Raises:
        CapabilityError: Some output has no input of its shape, or several.
    """
    for names in find_returned_names(type(module).forward):
        if len(names) == len(outputs) and all(
            name in inputs and inputs[name].shape == output.shape
            for name, output in zip(names, outputs, strict=True)
        ):
            return names
    chosen: list[str] = []
    for output in outputs:
        alike = [n for n, x in inputs.items() if x.shape == output.shape and n not in chosen]
        if not alike or (len(alike) > 1 and len(outputs) > 1):
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in inputs.items())
            raise CapabilityError(
                f"{path} ({type(module).__name__}) returns {tuple(output.shape)}, which continues "
                f"{'several' if alike else 'none'} of its inputs ({shapes}); keep its output "
                "instead of its residual"
            )
        chosen.append(alike[0])
    return tuple(chosen)
