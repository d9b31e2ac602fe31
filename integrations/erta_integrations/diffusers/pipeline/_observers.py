"""Refuses to reuse a network call of which the pipeline reads more than the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.pipeline._network_state import (
    Held,
    NetworkState,
)

DEPTH = 4
"""How deep a store is looked into: a processor, its store, the lists of that, what they hold."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
NEAR = 64
"""Operations that are looked at between a tensor and what it was made from."""
REMEDY = "run this pipeline without attach, or compute every step"


class Observers:
    """What looks into the networks of one request: hooks, stores of attention maps, gradients.

    A reused step does not run the network. So a hook inside it is not called, and a processor that
    keeps attention maps still has those of an earlier step. What was there before the request
    began belongs to the user and is left alone.
    """

    def __init__(self) -> None:
        # torch numbers hooks as they are set, so those of this request have this number or more
        self._first = self._seen = RemovableHandle.next_id
        self._stores: dict[str, str] = {}

    def look(self, state: NetworkState) -> list[object]:
        """What the processors that are not diffusers' own hold, before or after a call."""
        return [
            summarise(holder, DEPTH)
            for attention, processor in state.foreign
            for holder in (attention, processor)
        ]

    def note(self, name: str, state: NetworkState, before: list[object]) -> None:
        """Remember that a network that has run kept something of the call."""
        after = self.look(state)
        if len(after) != len(before) or after == before:
            return
        changed = [k for k, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        _, processor = state.foreign[changed[0] // 2]
        self._stores[name] = type(processor).__name__

    def refuse_reuse(self, name: str, network: nn.Module, arguments: Mapping[str, Any]) -> None:
        """Refuse to reuse a call, because its value is not all that is read of it.

        Args:
            name: The component that is called.
            network: The network.
            arguments: What it is called with.

        Raises:
            CapabilityError: A gradient is wanted, a hook was set inside the network since the
                request began, or an attention processor keeps what it computes.
        """
        cls = type(network).__name__
        if torch.is_grad_enabled() and (wanted := find_gradient(arguments)):
            raise CapabilityError(
                f"{name} ({cls}): {wanted} requires a gradient, and a reused step has none "
                f"through the network; {REMEDY}"
            )
        if RemovableHandle.next_id != self._seen:
            if (hooked := next(self._find_hooks(network), None)) is not None:
                raise CapabilityError(
                    f"{name} ({cls}): a hook was set on {hooked} since the request began, and a "
                    f"reused step does not call it; {REMEDY}, or set the hook before the request"
                )
            self._seen = RemovableHandle.next_id
        if name in self._stores:
            raise CapabilityError(
                f"{name} ({cls}): its attention processor {self._stores[name]} keeps what it "
                f"computes for others to read, and a reused step computes nothing; {REMEDY}"
            )

    def _find_hooks(self, network: nn.Module) -> Iterator[str]:
        """The modules inside a network with a hook of this request; its own are always called."""
        for path, module in network.named_modules():
            numbers = [number for kind in HOOKS for number in getattr(module, kind)]
            if path and any(number >= self._first for number in numbers):
                yield f"{path} ({type(module).__name__})"


def find_gradient(arguments: Mapping[str, Any]) -> str:
    """The first argument whose gradient somebody wants; empty if there is none."""
    for name, value in arguments.items():
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, Tensor) and is_wanted(one) for one in values):
            return name
    return ""


def is_wanted(value: Tensor) -> bool:
    """Whether a tensor, or one that it was just made from, was told to require a gradient.

    Where nobody says `no_grad`, latents require one as well, because they were made from the
    parameters of a network; that gradient nobody wants.
    """
    if value.is_leaf:
        return value.requires_grad and not isinstance(value, nn.Parameter)
    nodes = [value.grad_fn]
    for node in nodes:
        leaf = getattr(node, "variable", None)
        if leaf is not None and not isinstance(leaf, nn.Parameter):
            return True
        if node is not None and len(nodes) < NEAR:
            nodes += [earlier for earlier, _ in node.next_functions]
    return False


def summarise(value: Any, depth: int) -> object:
    """A value as it is now, to be compared later: what it holds, down to a depth."""
    if isinstance(value, Tensor):
        return Held(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth:
        if isinstance(value, list | tuple | set):
            return len(value), tuple(summarise(item, depth - 1) for item in value)
        if isinstance(value, Mapping):
            return tuple((key, summarise(item, depth - 1)) for key, item in value.items())
        if not isinstance(value, type) and hasattr(value, "__dict__"):
            # of a module, its own attributes: what is inside it is looked at where it is
            inner = 1 if isinstance(value, nn.Module) else depth
            return tuple((key, summarise(item, inner - 1)) for key, item in vars(value).items())
    return Held(value)
