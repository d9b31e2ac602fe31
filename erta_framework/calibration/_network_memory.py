"""`NetworkMemory`: counts the network calls of a calibration, and spares those made before."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from erta_framework.errors import CapabilityError
from erta_framework.plugins import Policy, Profiler

GRADIENT_CALLS = 1 + 1 + 2
"""Network calls that one with its gradient counts as: the call, the same once more, so that no
activations are kept until then, and the gradient as two."""


@dataclass(frozen=True, slots=True, eq=False)
class KnownCall:
    """A call, in copies of its own."""

    inputs: tuple[Tensor, ...]
    output: Any


class NetworkMemory:
    """Answers calls of a network that an earlier run has made with the same inputs.

    Runs that differ from some step on begin alike. A call has the same place in both runs, and its
    inputs are compared bit by bit, so the answer is what the network would say. Calls whose inputs
    require gradients are always made.

    Attributes:
        rows: Samples that the network has computed, over all calls; one with its gradient counts
            `GRADIENT_CALLS` times.

    Example:
        >>> memory, x = NetworkMemory(), torch.ones(2)
        >>> for keep in (True, False):
        ...     memory.begin(keep)
        ...     _ = memory.call(torch.neg, (x,), {})
        >>> memory.rows
        2
    """

    def __init__(self) -> None:
        self.rows = 0
        self._known: list[KnownCall] = []
        self._kept: list[KnownCall] = []
        self._place = 0
        self._keeping = False

    def begin(self, keep: bool) -> None:
        """A run begins.

        Args:
            keep: Keep its calls, for the runs after it, instead of those that were kept before.
        """
        if self._keeping:
            self._known = self._kept
        self._place, self._keeping, self._kept = 0, keep, []

    def call(
        self, network: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """What the network answers.

        Raises:
            CapabilityError: Its inputs require gradients, and it lets none through.
        """
        inputs = tuple(iter_tensors((args, kwargs)))
        if torch.is_grad_enabled():
            if not any(value.requires_grad for value in inputs):
                with torch.no_grad():  # the network's own parameters may require gradients
                    return self.call(network, args, kwargs)
            self._place += 1
            self.rows += GRADIENT_CALLS * inputs[0].shape[0]
            return call_with_gradient(network, args, kwargs)
        known = self._known[self._place] if self._place < len(self._known) else None
        self._place += 1
        if known is None or not is_same(known.inputs, inputs):
            output = network(*args, **kwargs)
            self.rows += inputs[0].shape[0] if inputs and inputs[0].ndim else 1
            if not self._keeping:
                return output
            known = KnownCall(copy.deepcopy(inputs), copy.deepcopy(output))
        if self._keeping:
            self._kept.append(known)
        return copy.deepcopy(known.output)

    @contextmanager
    def watch(self, *networks: nn.Module) -> Iterator[None]:
        """Stand between networks and whoever calls them, within a `with` block."""
        own = [vars(network).get("forward") for network in networks]
        for network in networks:
            network.forward = self._between(network.forward)
        try:
            yield
        finally:
            for network, before in zip(networks, own, strict=True):
                del network.forward
                if before is not None:
                    network.forward = before

    def _between(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.call(original, args, kwargs)

        return forward


def call_with_gradient(
    network: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """What a network answers, with the gradient of its inputs, without keeping activations.

    Raises:
        CapabilityError: It lets no gradients through.
    """
    output = checkpoint(network, *args, use_reentrant=False, **kwargs)
    if not any(value.requires_grad for value in iter_tensors(output)):
        raise CapabilityError(
            "the network lets no gradients through: its output has none, though its inputs "
            "require them; remove no_grad or inference_mode from its forward"
        )
    return output


def makes_more_runs(profiler: Policy) -> bool:
    """Whether a calibration makes other runs than the rounds of its profiler."""
    return isinstance(profiler, Profiler) and bool(
        profiler.substeps or profiler.tries_before or profiler.tries_out
    )


def iter_tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from iter_tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from iter_tensors(each)


def is_same(known: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> bool:
    """Whether all tensors are equal, bit by bit."""
    return len(known) == len(inputs) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(known, inputs, strict=True)
    )
