"""Runs a pipeline's network on other latents, with every other argument as the pipeline gave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.networks import (
    TIME,
    TIMES,
    called,
    latents_of,
    named,
)
from erta_integrations.diffusers.shapes import OutputForm, Relation, read_output


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What one network call was given, to call the network again on part or other latents.

    Attributes:
        arguments: The arguments by name.
        placed: How many of them were given by place.
        original: The network's `forward`, without the patch.
        time: The time among the arguments.
    """

    arguments: Mapping[str, Any]
    placed: int
    original: Callable[..., Any]
    time: Any


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """Trials of one network call; a `Trial` of the call's session.

    The network is told a time in the unit and shape that the pipeline uses. How it gets there from
    the scheduler's timestep is the pipeline's affair, so only times that it has told are known.

    Attributes:
        name: Name of the component.
        network: The network.
        given: What this call was given.
        latents: The latents among the arguments, stacked if they are a list.
        form: How the output relates to them.
        told: What the pipeline told the network at each of its times so far.
        now: The time of this step.
    """

    name: str
    network: nn.Module
    given: Given
    latents: Tensor
    form: OutputForm
    told: Mapping[float, Any]
    now: float

    def __call__(self, x: Tensor, time: float | None) -> Tensor:
        """The network's prediction for `x`, of the shape of `x`.

        Raises:
            CapabilityError: The latents cannot stand in the place of the pipeline's, or it never
                told the network of this time.
        """
        whole = self._whole(x)
        latents = latents_of(self.given.arguments)
        changed = substituted(self.given.arguments, latents, as_given(whole, latents))
        if time is not None and time != self.now:
            changed = self._timed(changed, time)
        args, kwargs = called(self.network, changed, self.given.placed)
        main, _ = read_output(self.given.original(*args, **kwargs), whole, self.name)
        return main if main.dtype is x.dtype else main.to(x.dtype)

    def _whole(self, x: Tensor) -> Tensor:
        """The latents with the conditions that the pipeline concatenated to its own."""
        rule, latents = self.form.rule, self.latents
        if rule.relation is Relation.OUTPUT:
            raise CapabilityError(
                f"no trial of {self.name} ({type(self.network).__name__}): its output has another "
                "shape than its latents; use a policy without trials"
            )
        x = x.to(latents.dtype)
        if rule.relation is not Relation.NARROWED:
            return x
        rest = latents.narrow(rule.dim, rule.size, latents.shape[rule.dim] - rule.size)
        wanted = [n for d, n in enumerate(rest.shape) if d != rule.dim]
        if wanted != [n for d, n in enumerate(x.shape) if d != rule.dim]:
            raise CapabilityError(
                f"no trial of {self.name} ({type(self.network).__name__}) on {tuple(x.shape)}: its "
                f"input also holds conditions {tuple(rest.shape)}, which cannot be made to fit"
            )
        return torch.cat([x, rest], rule.dim)

    def _timed(self, arguments: Mapping[str, Any], time: float) -> Mapping[str, Any]:
        if time not in self.told:
            known = ", ".join(f"{known:g}" for known in self.told)
            raise CapabilityError(
                f"no trial of {self.name} ({type(self.network).__name__}) at time {time:g}: how a "
                f"pipeline tells its network the time is known only for those it has told ({known})"
            )
        for name in named(arguments):
            if name in TIMES or TIME.search(name):
                return replaced(arguments, name, self.told[time])
        raise CapabilityError(
            f"no trial of {self.name} ({type(self.network).__name__}) at another time: its "
            "forward takes none"
        )


def as_given(x: Tensor, given: Any) -> Any:
    """Latents in the form that the pipeline gave its own: a tensor, or a list of one a sample."""
    return x if isinstance(given, Tensor) else type(given)(x.unbind(0))


def substituted(arguments: Mapping[str, Any], old: Any, new: Any) -> Mapping[str, Any]:
    """The arguments with one value in the place of another, found by identity."""
    name = next(name for name, value in named(arguments).items() if value is old)
    return replaced(arguments, name, new)


def replaced(arguments: Mapping[str, Any], name: str, value: Any) -> Mapping[str, Any]:
    """The arguments with another value of one, which may be among those of `**kwargs`."""
    more = arguments.get("kwargs")
    if isinstance(more, Mapping) and name in more:
        return {**arguments, "kwargs": {**more, name: value}}
    return {**arguments, name: value}
