"""The denoising networks of a pipeline, found by what their `forward` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError

USUAL = ("transformer", "transformer_2", "unet", "prior")
LATENTS = ("hidden_states", "sample", "x", "latents", "latent_model_input")
TIMES = ("timestep", "timesteps", "t", "timestep_ratio")
CONTROL = ("controlnet_cond", "control_context", "controls_latents")


def find_networks(pipe: Any, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """The denoising networks of a pipeline, by component name.

    Without names, these are the components that usually are one and every other module whose
    `forward` takes latents and a time; control networks, which only feed one, are left out.

    Raises:
        CapabilityError: There is none, or one was compiled in place.
    """
    modules = {n: m for n, m in components(pipe).items() if isinstance(m, nn.Module)}
    if names is None:
        found = {n: m for n, m in modules.items() if n in USUAL or denoises(m)}
    else:
        found = {n: modules[n] for n in names if n in modules}
    if not found or (names is not None and len(found) < len(names)):
        asked = "that takes latents and a time" if names is None else f"for {', '.join(names)}"
        raise CapabilityError(
            f"{type(pipe).__name__} has no network {asked}; name it with networks=[...], "
            f"its modules are: {', '.join(modules) or 'none'}"
        )
    for name, network in found.items():
        if compiled_in_place(network):
            raise CapabilityError(
                f"{name} ({type(network).__name__}) was compiled in place with module.compile(), "
                f"which would trace the engine; use pipe.{name} = torch.compile(pipe.{name}) or "
                "compile_repeated_blocks()"
            )
    return found


def components(pipe: Any) -> dict[str, Any]:
    """The pipeline's components as they are now, which `pipe.components` may not show."""
    names = [*getattr(pipe, "components", {}), *USUAL]
    return {name: getattr(pipe, name, None) for name in dict.fromkeys(names)}


def denoises(module: nn.Module) -> bool:
    """Whether `forward` takes latents and a time, and is not that of a control network."""
    taken = signature_of(unwrapped(module).forward).parameters.keys()
    return bool(taken & set(LATENTS) and taken & set(TIMES) and not taken & set(CONTROL))


def compiled_in_place(network: nn.Module) -> bool:
    """Whether `network.compile()` was called."""
    return getattr(network, "_compiled_call_impl", None) is not None


def unwrapped(network: nn.Module) -> type[nn.Module]:
    """Class of the network under `torch.compile(network)`."""
    inner: nn.Module = getattr(network, "_orig_mod", network)
    return type(inner)


@lru_cache(maxsize=256)
def signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    """Signature of a network class's `forward`, without self."""
    signature = inspect.signature(forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def bound(
    network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The arguments of a call by name."""
    return signature_of(unwrapped(network).forward).bind_partial(*args, **kwargs).arguments


def pick(arguments: Mapping[str, Any], names: tuple[str, ...], first: bool = False) -> Any:
    """The argument that has one of these names, else the first one or None."""
    for name in names:
        if name in arguments:
            return arguments[name]
    return next(iter(arguments.values()), None) if first else None
