"""Facts that identify a pipeline's network, scheduler and guidance, for profiles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a configuration without its private and location-dependent entries."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    # json writes a tuple as the list that it becomes when the configuration is saved and loaded
    text = json.dumps(public, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def network_facts(name: str, network: nn.Module) -> dict[str, str]:
    """Component name, class and configuration of the network that opens a request."""
    inner = getattr(network, "_orig_mod", network)
    facts = {"component": name, "network": type(inner).__name__}
    config = getattr(inner, "config", None)
    if config is not None:
        facts["config"] = config_hash(dict(config))
    return facts


def channel_dim(network: nn.Module, shape: tuple[int, ...]) -> int:
    """The dimension of the latents that holds the channels.

    It is the one whose size is the network's `in_channels`, else its `out_channels`. Where several
    fit, or none, packed tokens `[B, L, C]` have it last, everything else as early as possible.

    Example:
        >>> channel_dim(nn.Linear(1, 1), (1, 4096, 64))
        2
    """
    places = (2, 1) if len(shape) == 3 else tuple(range(1, len(shape)))
    config = getattr(getattr(network, "_orig_mod", network), "config", None) or {}
    for size in (config.get("in_channels"), config.get("out_channels")):
        for place in places:
            if isinstance(size, int) and shape[place] == size:
                return place
    return places[0] if places else 0


def solver_of(scheduler: Any) -> str:
    """Scheduler class and hash of its configuration."""
    return f"{type(scheduler).__name__}({config_hash(dict(scheduler.config))})"


def guidance_of(pipe: Any) -> str:
    """The guidance scale that this request was given, where the pipeline keeps it."""
    scales = {
        name: getattr(pipe, name)
        for name in ("_guidance_scale", "_guidance_scale_2", "_true_cfg_scale")
        if isinstance(getattr(pipe, name, None), int | float)
    }
    return ", ".join(f"{name[1:]}={scale}" for name, scale in scales.items()) or "unknown"
