"""The embeddings of the timestep inside a network: of this step, and of all steps ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_framework.session import AHEAD, PREFIX
from erta_integrations.diffusers.network import PatchSet
from erta_integrations.diffusers.trunk import _signals as signals

WAVES = "waves"
"""The sinusoids of the timestep, which its embedding is made from."""
BESIDE = "ofs_embedding"
"""The embedding of CogVideoX1.5's offset, which is added to that of the timestep."""


class EmbeddedTimes:
    """Watches the modules that embed the timestep, while a network runs.

    Args:
        network: The network.
        wanted: Signals that policies declare, with prefix.
    """

    def __init__(self, network: nn.Module, wanted: frozenset[str]) -> None:
        self.cls = type(network).__name__
        self.names = tuple(
            name for name in (signals.TIME, signals.PROJECTION) if PREFIX + name in wanted
        )
        embedding = signals.time_embedding_of(network)
        projection = signals.time_projection_of(network)
        found = {signals.TIME: embedding, signals.PROJECTION: projection}
        self.modules = {name: module for name, module in found.items() if module is not None}
        self.waves = signals.time_waves_of(network)
        self.beside = getattr(network, BESIDE, None)
        self.activation = signals.activation_beside(network, projection)
        self.given: dict[str, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
        self.returned: dict[str, Tensor] = {}

    def install(self, patches: PatchSet, running: Callable[[], bool]) -> None:
        """Watch the modules whenever `running()` says that the network does."""
        if not self.names:
            return
        watched = {**self.modules, WAVES: self.waves, BESIDE: self.beside}
        for name, module in watched.items():
            if module is None:
                continue
            patches.apply(module, "forward", partial(self._watched, name, running))

    def _watched(
        self,
        name: str,
        running: Callable[[], bool],
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        returned = original(*args, **kwargs)
        if running():
            self.given[name], self.returned[name] = (args, kwargs), returned
        return returned

    def clear(self) -> None:
        """Forget the call of the network that has ended."""
        self.given.clear()
        self.returned.clear()

    def features(self, times: Sequence[float], now: float) -> dict[str, signals.Feature]:
        """The signals that policies declared, and those of all steps ahead.

        Args:
            times: The scheduler's timestep at each step.
            now: That of this step.
        """
        found: dict[str, signals.Feature] = {n: partial(self._embedded, n) for n in self.names}
        return found | {n + AHEAD: partial(self._ahead, n, times, now) for n in self.names}

    def _embedded(self, name: str) -> Tensor:
        if name not in self.returned:
            raise CapabilityError(f"{self.cls} did not embed its timestep before its blocks")
        return self._with_beside(name, self.returned[name])

    def _with_beside(self, name: str, embedded: Tensor) -> Tensor:
        """The embedding of the timestep, with what the network adds to it."""
        if name != signals.TIME or BESIDE not in self.returned:
            return embedded
        return embedded + self.returned[BESIDE]

    # --------------------------------------------------------------------- all steps
    def _ahead(self, name: str, times: Sequence[float], now: float) -> Tensor:
        """The signal of every step, `[T, ...]`; nothing, `[0]`, where it cannot be made alone.

        The modules run once a step on what this call was given, with the timestep exchanged. That
        counts only if it gives the signal of this step to the bit.
        """
        nothing = torch.empty(0)
        asked = self._own_timestep(now)
        if asked is None or name not in self.returned:
            return nothing
        again = self._signal(name, asked, now)
        if again is None or not torch.equal(again, self.returned[name]):
            return nothing
        made = [self._signal(name, asked, time) for time in times]
        return torch.stack([self._with_beside(name, one) for one in made if one is not None])

    def _own_timestep(self, now: float) -> Tensor | None:
        """What the sinusoids were given in this call, if it is the scheduler's timestep."""
        args, kwargs = self.given.get(WAVES, ((), {}))
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].ndim != 1:
            return None
        told: list[float] = args[0].tolist()
        # a pipeline may tell 1 - t/1000 or 1000 - t, which would be another schedule
        return args[0] if all(abs(value - now) <= 1e-3 * abs(now) for value in told) else None

    def _signal(self, name: str, asked: Tensor, time: float) -> Tensor | None:
        """The signal at another timestep; None if the modules are not wired as is usual."""
        assert self.waves is not None
        waves = type(self.waves).forward(self.waves, torch.full_like(asked, time))
        args, kwargs = self.given.get(signals.TIME, ((), {}))
        if not args or not isinstance(args[0], Tensor) or args[0].numel() != waves.numel():
            return None
        first = waves.reshape(args[0].shape).to(args[0].dtype)
        module = self.modules[signals.TIME]
        embedded: Tensor = type(module).forward(module, first, *args[1:], **kwargs)
        if name == signals.TIME:
            return embedded
        args, kwargs = self.given.get(name, ((), {}))
        if len(args) != 1 or kwargs or self.activation is None:
            return None
        module = self.modules[name]
        activated = self.activation(embedded.to(args[0].dtype))
        projected: Tensor = type(module).forward(module, activated)
        return projected
