"""`inspect`: what `attach` finds in a pipeline, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.modules import describe_places
from erta_integrations.diffusers.network import find_networks
from erta_integrations.diffusers.trunk._discovery import discover
from erta_integrations.diffusers.trunk._signals import (
    find_text_signals,
    find_trunk_signals,
    format_signals,
    parse_depth,
)

STREAM = re.compile(r"hidden_states$|^x$")


def inspect(pipe: Any, networks: Sequence[str] | None = None) -> str:
    """Describe what `attach` finds in a pipeline: networks, blocks, places, signals and seams.

    Args:
        pipe: A diffusers pipeline.
        networks: Names of components, as in `attach`.

    Example:
        >>> print(inspect(pipe))  # doctest: +SKIP
        transformer: WanTransformer3DModel
          text: prompt, prompt_mask
          blocks: 30 x WanTransformerBlock, streams hidden_states, encoder_hidden_states
          signals: modulated_input, timestep_embedding, timestep_projection
          probes: probe:1 to probe:29
          seams: latent, trunk
          places: 30 block, 30 attention, 30 cross, 30 mlp
    """
    lines = []
    for name, network in find_networks(pipe, networks).items():
        inner = getattr(network, "_orig_mod", network)
        lines.append(f"{name}: {type(inner).__name__}")
        if text := find_text_signals([network]):
            lines.append(f"  text: {format_signals(text)}")
        try:
            lines += describe_trunk(network)
        except CapabilityError as error:
            lines += [
                "  signals: none",
                "  probes: none",
                "  seams: latent",
                f"  no trunk: {error}",
            ]
        lines.append(f"  places: {list_kinds(network)}")
    return "\n".join(lines)


def list_kinds(network: nn.Module) -> str:
    """How many places of each kind a network has."""
    try:
        return describe_places(network)
    except CapabilityError:
        return "none"


def describe_trunk(network: nn.Module) -> list[str]:
    """The lines on one network's trunk.

    Raises:
        CapabilityError: It has no trunk.
    """
    lines = []
    stacks = discover(network)
    for stack, blocks in stacks.items():
        classes = dict.fromkeys(type(block.module).__name__ for block in blocks)
        streams = [p for p in blocks[0].parameters if STREAM.search(p)]
        lines.append(
            f"  {stack}: {len(blocks)} x {' / '.join(classes)}, "
            f"streams {', '.join(streams) or 'unknown'}"
        )
    offered = find_trunk_signals(network, stacks)
    probes = frozenset(name for name in offered if parse_depth(name))
    return [
        *lines,
        f"  signals: {format_signals(offered - probes)}",
        f"  probes: {format_signals(probes)}",
        "  seams: latent, trunk",
    ]
