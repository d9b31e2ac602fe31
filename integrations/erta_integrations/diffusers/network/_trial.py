"""Runs a pipeline's network on other latents or at another timestep; all else stays as passed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.network._arguments import (
    TIME,
    TIMES,
    find_latents,
    flatten_kwargs,
    to_call,
)
from erta_integrations.diffusers.network._output_spec import (
    OutputSpec,
    Relation,
    find_channel_dim,
    read_output,
)

FEATURES = re.compile(r"additional_residual|block_samples$|controlnet_hidden_states$")
"""Arguments that hold features of a control network, which saw the latents at their own size."""

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CallArguments:
    """One network call as the pipeline made it; the network can be called again with it.

    Attributes:
        original: The network's `forward`, without our patch.
        args: The positional arguments.
        kwargs: The keyword arguments.
        arguments: All of them by name.
        timestep: The timestep among them, as the pipeline passed it.
    """

    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    arguments: Mapping[str, Any]
    timestep: Any

    @property
    def num_positional(self) -> int:
        """How many arguments are passed by position."""
        return len(self.args)

    def run(self) -> Any:
        """Run the network on these arguments."""
        return self.original(*self.args, **self.kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class TrialRunner:
    """Runs the network of one call on other latents, or at another timestep.

    Each pipeline converts the scheduler's timestep in its own way before it passes it to the
    network. A trial can therefore use only the timesteps that the pipeline has passed so far.

    Attributes:
        name: Name of the component.
        network: The network.
        call: The call as the pipeline made it.
        latents: Its latents, stacked if they are a list.
        spec: How the output relates to them.
        passed_timesteps: What the pipeline passed at each of the scheduler's timesteps so far.
        timestep: The scheduler's timestep of this step.
    """

    name: str
    network: nn.Module
    call: CallArguments
    latents: Tensor
    spec: OutputSpec
    passed_timesteps: Mapping[float, Any]
    timestep: float

    def run(self, x: Tensor, timestep: float | None) -> Tensor:
        """The network's prediction for `x`, of the shape of `x`.

        `x` may differ from the pipeline's latents in the sizes of their grid. Conditions of the
        size of these latents are then averaged to the sizes of `x`.

        Args:
            x: Latents `[B, C, ...]`.
            timestep: A timestep of the scheduler; None is that of this step.

        Raises:
            CapabilityError: The network cannot run on `x`, or the pipeline has not passed this
                timestep yet.
        """
        rule, latents = self.spec.rule, self.latents
        if rule.relation is Relation.OUTPUT:
            raise CapabilityError(
                f"no trial of {self.name} ({type(self.network).__name__}): its output has another "
                "shape than its latents; use a policy without trials"
            )
        channels = find_channel_dim(self.network, tuple(latents.shape))
        if rule.relation is Relation.NARROWED:
            channels = rule.dim
        sizes, whole = get_sizes(x.shape, channels), get_sizes(latents.shape, channels)
        arguments = self.call.arguments
        if sizes != whole:
            arguments = self._resize_conditions(arguments, sizes, channels)
        full = x.to(latents.dtype)
        if rule.relation is Relation.NARROWED:  # `x` has no conditions: those of the call are added
            rest = latents.narrow(rule.dim, rule.size, latents.shape[rule.dim] - rule.size)
            full = torch.cat([full, average_to(rest, sizes, rule.dim)], rule.dim)
        own = find_latents(self.call.arguments)
        arguments = replace_value(arguments, own, as_container_of(own, full))
        if timestep is not None and timestep != self.timestep:
            arguments = self._replace_timestep(arguments, timestep)
        main = self._run(arguments, full, None if sizes == whole else (sizes, whole))
        if main.shape != x.shape:
            raise self._make_size_error(sizes, whole, f"the network returned {tuple(main.shape)}")
        return main if main.dtype is x.dtype else main.to(x.dtype)

    def _run(
        self, arguments: Mapping[str, Any], x: Tensor, sizes: tuple[Sizes, Sizes] | None
    ) -> Tensor:
        args, kwargs = to_call(self.network, arguments, self.call.num_positional)
        try:
            raw = self.call.original(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            if sizes is None:
                raise
            why = f"the network raised {type(error).__name__}: {error}"
            raise self._make_size_error(*sizes, why) from error
        return read_output(raw, x, self.name)[0]

    def _make_size_error(self, sizes: Sizes, whole: Sizes, why: str) -> CapabilityError:
        return CapabilityError(
            f"no trial of {self.name} ({type(self.network).__name__}) on latents of {sizes}, where "
            f"this pipeline gives {whole}: {why}; try other sizes, such as every frame or a "
            "multiple of the patch size, or use a policy without trials"
        )

    def _resize_conditions(
        self, arguments: Mapping[str, Any], sizes: Sizes, channels: int
    ) -> Mapping[str, Any]:
        """The arguments, with each condition of the size of the latents averaged to `sizes`."""
        whole = get_sizes(self.latents.shape, channels)
        own = find_latents(arguments)
        for name, value in flatten_kwargs(arguments).items():
            if value is not None and FEATURES.search(name):
                raise CapabilityError(
                    f"no trial of {self.name} ({type(self.network).__name__}) on latents of "
                    f"{sizes}: the pipeline gives {name}, the features of a control network "
                    f"for latents of {whole}; use a policy that keeps their size"
                )
            alike = isinstance(value, Tensor) and value.ndim == self.latents.ndim
            if alike and value is not own and get_sizes(value.shape, channels) == whole:
                arguments = replace_argument(arguments, name, average_to(value, sizes, channels))
        return arguments

    def _replace_timestep(self, arguments: Mapping[str, Any], timestep: float) -> Mapping[str, Any]:
        if timestep not in self.passed_timesteps:
            known = ", ".join(f"{known:g}" for known in self.passed_timesteps)
            raise CapabilityError(
                f"no trial of {self.name} ({type(self.network).__name__}) at timestep "
                f"{timestep:g}: how this pipeline passes a timestep to its network is known only "
                f"for those of the steps so far ({known}); ask for one of these"
            )
        for name in flatten_kwargs(arguments):
            if name in TIMES or TIME.search(name):
                return replace_argument(arguments, name, self.passed_timesteps[timestep])
        raise CapabilityError(
            f"no trial of {self.name} ({type(self.network).__name__}) at another timestep: its "
            "forward takes none; use a policy that does not try other timesteps"
        )


# ------------------------------------------------------------------------- arguments
def get_sizes(shape: Sequence[int], channels: int) -> Sizes:
    """Sizes of the axes that are neither batch nor channels."""
    return tuple(size for d, size in enumerate(shape) if d not in (0, channels))


def average_to(x: Tensor, sizes: Sizes, channels: int) -> Tensor:
    """Average `x` over the cells of a grid of these sizes; a mask becomes the share of a cell."""
    if get_sizes(x.shape, channels) == sizes:
        return x
    small = functional.interpolate(x.movedim(channels, 1).float(), list(sizes), mode="area")
    return small.movedim(1, channels).to(x.dtype)


def as_container_of(own: Any, x: Tensor) -> Any:
    """`x` in the form of the pipeline's own latents: a tensor, or a list of one per sample."""
    return x if isinstance(own, Tensor) else type(own)(x.unbind(0))


def replace_value(arguments: Mapping[str, Any], old: Any, new: Any) -> Mapping[str, Any]:
    """The arguments with one value replaced; the old one is found by identity."""
    name = next(name for name, value in flatten_kwargs(arguments).items() if value is old)
    return replace_argument(arguments, name, new)


def replace_argument(arguments: Mapping[str, Any], name: str, value: Any) -> Mapping[str, Any]:
    """The arguments with another value for one of them, also inside a `**kwargs` parameter."""
    more = arguments.get("kwargs")
    if isinstance(more, Mapping) and name in more:
        return {**arguments, "kwargs": {**more, name: value}}
    return {**arguments, name: value}
