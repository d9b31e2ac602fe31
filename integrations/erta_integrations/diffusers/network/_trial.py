"""Runs a pipeline's network on other latents, with every other argument as the pipeline gave it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from erta_framework import Policy
from erta_framework.errors import CapabilityError
from erta_framework.session import RESIZED, TRIAL
from erta_integrations.diffusers.network._arguments import (
    TIME,
    TIMES,
    called,
    latents_of,
    named,
    signature,
)
from erta_integrations.diffusers.network._output_spec import (
    OutputForm,
    Relation,
    channel_dim,
    read_output,
)

POSITIONS = re.compile(
    r"(^|_)img_(ids|sizes|shapes)$|position_ids$|rotary|rope_pos$|^video_coords$|^indices_"
    r"|^(num_frames|height|width)$"
)
"""Arguments in which a pipeline tells its network where tokens lie or how large latents are."""
FEATURES = re.compile(r"additional_residual|block_samples$|controlnet_hidden_states$")
"""Arguments with the features of a control network, which has seen the latents at their size."""

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CallArguments:
    """What a pipeline gave to one network call; the network can be called again with it.

    Attributes:
        original: The network's `forward`, without the patch.
        args: The arguments given by place.
        kwargs: The arguments given by name.
        arguments: All of them by name.
        time: The timestep among them.
    """

    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    arguments: Mapping[str, Any]
    time: Any

    @property
    def placed(self) -> int:
        """How many were given by place."""
        return len(self.args)

    def run(self) -> Any:
        """What the network returns for these very arguments."""
        return self.original(*self.args, **self.kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class TrialRunner:
    """Runs the network of one call on other latents, or at another timestep.

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
    given: CallArguments
    latents: Tensor
    form: OutputForm
    told: Mapping[float, Any]
    now: float

    def run(self, x: Tensor, time: float | None) -> Tensor:
        """The network's prediction for `x`, of the shape of `x`.

        Latents may have another size along the axes of their grid. Conditions of the size of the
        pipeline's latents are averaged down to it.

        Raises:
            CapabilityError: The latents cannot stand in the place of the pipeline's, or it never
                told the network of this time.
        """
        rule, latents = self.form.rule, self.latents
        if rule.relation is Relation.OUTPUT:
            raise CapabilityError(
                f"no trial of {self.name} ({type(self.network).__name__}): its output has another "
                "shape than its latents; use a policy without trials"
            )
        channels = channel_dim(self.network, tuple(latents.shape))
        if rule.relation is Relation.NARROWED:
            channels = rule.dim
        sizes, whole = grid(x.shape, channels), grid(latents.shape, channels)
        arguments = self.given.arguments
        if sizes != whole:
            arguments = self._resized(arguments, sizes, channels)
        full = x.to(latents.dtype)
        if rule.relation is Relation.NARROWED:
            rest = latents.narrow(rule.dim, rule.size, latents.shape[rule.dim] - rule.size)
            full = torch.cat([full, averaged(rest, sizes, rule.dim)], rule.dim)
        given = latents_of(self.given.arguments)
        arguments = substituted(arguments, given, as_given(full, given))
        if time is not None and time != self.now:
            arguments = self._timed(arguments, time)
        main = self._run(arguments, full, None if sizes == whole else (sizes, whole))
        if main.shape != x.shape:
            raise self._unfit(sizes, whole, f"the network returned {tuple(main.shape)}")
        return main if main.dtype is x.dtype else main.to(x.dtype)

    def _run(
        self, arguments: Mapping[str, Any], x: Tensor, sizes: tuple[Sizes, Sizes] | None
    ) -> Tensor:
        args, kwargs = called(self.network, arguments, self.given.placed)
        try:
            raw = self.given.original(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            if sizes is None:
                raise
            why = f"the network raised {type(error).__name__}: {error}"
            raise self._unfit(*sizes, why) from error
        return read_output(raw, x, self.name)[0]

    def _unfit(self, sizes: Sizes, whole: Sizes, why: str) -> CapabilityError:
        return CapabilityError(
            f"no trial of {self.name} ({type(self.network).__name__}) on latents of {sizes}, where "
            f"this pipeline gives {whole}: {why}; try other sizes, such as every frame or a "
            "multiple of the patch size, or use a policy without trials"
        )

    def _resized(
        self, arguments: Mapping[str, Any], sizes: Sizes, channels: int
    ) -> Mapping[str, Any]:
        """The arguments, with every condition of the size of the latents averaged to `sizes`."""
        whole = grid(self.latents.shape, channels)
        given = latents_of(arguments)
        for name, value in named(arguments).items():
            if value is not None and FEATURES.search(name):
                raise CapabilityError(
                    f"no trial of {self.name} ({type(self.network).__name__}) on latents of "
                    f"{sizes}: the pipeline gives {name}, the features of a control network "
                    f"for latents of {whole}; use a policy that keeps their size"
                )
            alike = isinstance(value, Tensor) and value.ndim == self.latents.ndim
            if alike and value is not given and grid(value.shape, channels) == whole:
                arguments = replaced(arguments, name, averaged(value, sizes, channels))
        return arguments

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


def grid(shape: Sequence[int], channels: int) -> Sizes:
    """Sizes of the axes that are neither batch nor channels."""
    return tuple(size for d, size in enumerate(shape) if d not in (0, channels))


def averaged(x: Tensor, sizes: Sizes, channels: int) -> Tensor:
    """The means of `x` over the cells of a grid of these sizes; masks become parts of a cell."""
    if grid(x.shape, channels) == sizes:
        return x
    small = functional.interpolate(x.movedim(channels, 1).float(), list(sizes), mode="area")
    return small.movedim(1, channels).to(x.dtype)


def told_positions(network: nn.Module) -> str:
    """The argument in which a network is told positions or sizes; empty if there is none."""
    return next((name for name in signature(network).parameters if POSITIONS.search(name)), "")


def offered(networks: Mapping[str, nn.Module]) -> frozenset[str]:
    """The capabilities of trials of these networks, at the latent seam."""
    fixed = any(told_positions(network) for network in networks.values())
    return frozenset({TRIAL} if fixed else {TRIAL, RESIZED})


def check(policies: Sequence[Policy], networks: Mapping[str, nn.Module]) -> None:
    """Refuse a network that takes no latents of another size, if a policy tries such.

    Raises:
        CapabilityError: Names the policy, the network and the argument that stands against it.
    """
    for policy in policies:
        for name, network in networks.items():
            told = told_positions(network) if RESIZED in policy.traits.requires else ""
            if told:
                raise CapabilityError(
                    f"{policy!r} runs {name} ({type(network).__name__}) on smaller latents, but "
                    f"this network is told where its tokens lie in {told}, which only the pipeline "
                    "can make; use a policy without such trials, such as easycache"
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
