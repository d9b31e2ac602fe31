"""Finds the denoising networks of a pipeline by what their `forward` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.network._arguments import (
    LATENTS,
    TIME,
    TIMES,
    get_network_signature,
)

USUAL = ("transformer", "transformer_2", "unet", "prior")
"""Names under which pipelines of diffusers keep a denoising network."""
CONTROL = ("controlnet_cond", "control_context", "controls_latents")
"""Arguments by which a control network is known; it takes latents and a timestep too."""


def find_networks(pipe: Any, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Find the denoising networks of a pipeline, by component name.

    Without names, these are the components with a usual name and every other module whose
    `forward` takes latents and a timestep. Control networks are left out.

    Raises:
        CapabilityError: There is none, or one was compiled in place.
    """
    modules = {n: m for n, m in get_components(pipe).items() if isinstance(m, nn.Module)}
    if names is None:
        found = {n: m for n, m in modules.items() if n in USUAL or is_denoiser(m)}
    else:
        found = {n: modules[n] for n in names if n in modules}
    if not found or (names is not None and len(found) < len(names)):
        asked = "that takes latents and a time" if names is None else f"for {', '.join(names)}"
        raise CapabilityError(
            f"{type(pipe).__name__} has no network {asked}; name it with networks=[...], "
            f"its modules are: {', '.join(modules) or 'none'}"
        )
    refuse_compiled(found)
    return found


def find_undriven_networks(pipe: Any, driven: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Find the networks that a pipeline also steps with, when the user named only some.

    Raises:
        CapabilityError: One was compiled in place.
    """
    parts = get_components(pipe)
    found = {n: parts[n] for n in USUAL if n not in driven and isinstance(parts[n], nn.Module)}
    others = {n: m for n, m in found.items() if is_denoiser(m)}
    refuse_compiled(others)
    return others


def refuse_compiled(networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks that were compiled in place: the graph would contain our patches.

    Raises:
        CapabilityError: Names the network and the remedy.
    """
    for name, network in networks.items():
        if is_compiled_in_place(network):
            raise CapabilityError(
                f"{name} ({type(network).__name__}) was compiled in place with module.compile(), "
                f"which would trace the engine; use pipe.{name} = torch.compile(pipe.{name}) or "
                "compile_repeated_blocks()"
            )


def get_components(pipe: Any) -> dict[str, Any]:
    """The pipeline's components as they are now; `pipe.components` may be out of date."""
    names = [*getattr(pipe, "components", {}), *USUAL]
    return {name: getattr(pipe, name, None) for name in dict.fromkeys(names)}


def is_denoiser(module: nn.Module) -> bool:
    """Whether `forward` takes latents and a timestep, and is not that of a control network."""
    names = get_network_signature(module).parameters.keys()
    timed = bool(names & set(TIMES)) or any(TIME.search(name) for name in names)
    return bool(names & set(LATENTS) and timed and not names & set(CONTROL))


def is_compiled_in_place(network: nn.Module) -> bool:
    """Whether `network.compile()` was called."""
    return getattr(network, "_compiled_call_impl", None) is not None
