"""The embedding of the timestep inside a network: of this step, and of all steps ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_framework.session import AHEAD, PREFIX
from erta_integrations.diffusers.network import PatchSet
from erta_integrations.diffusers.trunk._signals import (
    PROJECTION,
    TIME,
    Feature,
    find_activation,
    find_sinusoids,
    find_time_embedding,
    find_time_projection,
)

SINUSOIDS = "sinusoids"
"""The sinusoids of the timestep, which its embedding is made from."""
OFFSET = "ofs_embedding"
"""The embedding of CogVideoX1.5's offset, which is added to that of the timestep."""


class Recorded(threading.local):
    """What was recorded in this thread."""

    def __init__(self) -> None:
        self.arguments: dict[str, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
        self.returned: dict[str, Tensor] = {}


class EmbeddedTimes:
    """Records what the modules that embed the timestep take and return, while a network runs.

    Args:
        network: The network.
        wanted: Signals that policies declare, with prefix.
    """

    def __init__(self, network: nn.Module, wanted: frozenset[str]) -> None:
        self.cls = type(network).__name__
        self.names = tuple(name for name in (TIME, PROJECTION) if PREFIX + name in wanted)
        projection = find_time_projection(network)
        found = {TIME: find_time_embedding(network), PROJECTION: projection}
        self.modules = {name: module for name, module in found.items() if module is not None}
        self.sinusoids = find_sinusoids(network)
        self.offset = getattr(network, OFFSET, None)
        self.activation = find_activation(network, projection)
        self._recorded = Recorded()

    @property
    def arguments(self) -> dict[str, tuple[tuple[Any, ...], Mapping[str, Any]]]:
        """What the modules were given in the network call of this thread."""
        return self._recorded.arguments

    @property
    def returned(self) -> dict[str, Tensor]:
        """What they returned."""
        return self._recorded.returned

    def install(self, patches: PatchSet, is_running: Callable[[], bool]) -> None:
        """Record the modules' calls whenever `is_running()` says that the network runs."""
        if not self.names:
            return
        watched = {**self.modules, SINUSOIDS: self.sinusoids, OFFSET: self.offset}
        for name, module in watched.items():
            if module is not None:
                patches.apply(module, "forward", partial(self._record, name, is_running))

    def _record(
        self,
        name: str,
        is_running: Callable[[], bool],
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        returned = original(*args, **kwargs)
        if is_running():
            self.arguments[name], self.returned[name] = (args, kwargs), returned
        return returned

    def clear(self) -> None:
        """Forget the network call that is over."""
        self.arguments.clear()
        self.returned.clear()

    def make_features(self, times: Sequence[float], now: float) -> dict[str, Feature]:
        """The signals that policies declared, and those of all steps ahead.

        Args:
            times: The scheduler's timestep at each step.
            now: The scheduler's timestep of this step.
        """
        found: dict[str, Feature] = {n: partial(self._get_embedded, n) for n in self.names}
        return found | {n + AHEAD: partial(self._ahead, n, times, now) for n in self.names}

    def _get_embedded(self, name: str) -> Tensor:
        if name not in self.returned:
            raise CapabilityError(f"{self.cls} did not embed its timestep before its blocks")
        return self._add_offset(name, self.returned[name])

    def _add_offset(self, name: str, embedded: Tensor) -> Tensor:
        """The embedding of the timestep, plus that of the offset if the network adds one."""
        if name != TIME or OFFSET not in self.returned:
            return embedded
        return embedded + self.returned[OFFSET]

    # --------------------------------------------------------------------- all steps
    def _ahead(self, name: str, times: Sequence[float], now: float) -> Tensor:
        """The signal of every step, `[T, ...]`; empty, `[0]`, if it cannot be made in advance.

        The modules run once per step on the arguments of this call, with another timestep. The
        result counts only if this way gives the signal of this step to the bit.
        """
        nothing = torch.empty(0)
        timestep = self._find_own_timestep(now)
        if timestep is None or name not in self.returned:
            return nothing
        again = self._compute_at(name, timestep, now)
        if again is None or not torch.equal(again, self.returned[name]):
            return nothing
        made = [self._compute_at(name, timestep, time) for time in times]
        return torch.stack([self._add_offset(name, one) for one in made if one is not None])

    def _find_own_timestep(self, now: float) -> Tensor | None:
        """The argument of the sinusoids in this call, if it is the scheduler's timestep."""
        args, kwargs = self.arguments.get(SINUSOIDS, ((), {}))
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].ndim != 1:
            return None
        values: list[float] = args[0].tolist()
        # a pipeline may pass 1 - t / 1000 or 1000 - t, which would be another schedule
        return args[0] if all(abs(value - now) <= 1e-3 * abs(now) for value in values) else None

    def _compute_at(self, name: str, own: Tensor, time: float) -> Tensor | None:
        """The signal at another timestep; None if the modules are not connected as usual.

        The usual chain is sinusoids, embedding, activation and projection.
        """
        assert self.sinusoids is not None
        sinusoids = type(self.sinusoids).forward(self.sinusoids, torch.full_like(own, time))
        args, kwargs = self.arguments.get(TIME, ((), {}))
        if not args or not isinstance(args[0], Tensor) or args[0].numel() != sinusoids.numel():
            return None
        first = sinusoids.reshape(args[0].shape).to(args[0].dtype)
        module = self.modules[TIME]
        embedded: Tensor = type(module).forward(module, first, *args[1:], **kwargs)
        if name == TIME:
            return embedded
        args, kwargs = self.arguments.get(name, ((), {}))
        if len(args) != 1 or kwargs or self.activation is None:
            return None
        module = self.modules[name]
        activated = self.activation(embedded.to(args[0].dtype))
        projected: Tensor = type(module).forward(module, activated)
        return projected
