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
    """Component name, class, configuration and LoRA adapters of the network that opens a request.

    Adapters are named only where some are active. What was fused and then unloaded, and weights
    that were changed otherwise, leave no sign.
    """
    inner = getattr(network, "_orig_mod", network)
    facts = {"component": name, "network": type(inner).__name__}
    config = getattr(inner, "config", None)
    if config is not None:
        facts["config"] = config_hash(dict(config))
    adapters = adapters_of(inner)
    if adapters:
        facts["adapters"] = adapters
    return facts


def adapters_of(network: nn.Module) -> str:
    """Active (or fused) LoRA adapters with their scales, such as `style=0.8`; empty without any."""
    if not getattr(network, "peft_config", None):
        return ""
    scales: dict[str, set[float]] = {}
    for layer in network.modules():
        for name, scale in scales_of(layer).items():
            scales.setdefault(name, set()).add(scale)
    return ", ".join(
        f"{name}={'/'.join(f'{scale:g}' for scale in sorted(scales[name]))}"
        for name in sorted(scales)
    )


def scales_of(layer: nn.Module | None) -> dict[str, float]:
    """Scale of each active or fused adapter of one layer; empty for a layer without adapters."""
    scaling = getattr(layer, "scaling", None)
    if layer is None or not isinstance(scaling, Mapping) or not hasattr(layer, "active_adapters"):
        return {}
    fused = getattr(layer, "merged_adapters", [])
    active: Any = layer.active_adapters
    if fused or getattr(layer, "disable_adapters", False):
        active = fused
    # diffusers multiplies by a scale and divides again, which costs the last digit
    return {name: round(float(scaling[name]), 9) for name in active if name in scaling}


class AdapterWatch:
    """Notices within a request that the adapters of a network are not what they were.

    It looks at the list of adapters and at one adapted layer, which costs microseconds a call:
    loading, unloading, fusing, disabling and scaling an adapter as a whole are seen; other writes
    into weights are not.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, nn.Module | None, object]] = {}
        self._changes: dict[str, int] = {}
        self._bare: set[str] = set()  # networks that never had any adapters

    def model(self, name: str, network: nn.Module) -> str:
        """Name of the network for this call: `transformer`, after a change `transformer#2`."""
        inner = network._modules.get("_orig_mod") or network
        adapters = vars(inner).get("peft_config")  # a missing attribute is slow to ask for
        if not adapters and name in self._bare:
            return name
        loaded = tuple(adapters) if adapters else ()
        before = self._known.get(name)
        layer = before[1] if before is not None and before[0] == loaded else None
        if layer is None and loaded:
            layer = next((m for m in inner.modules() if scales_of(m)), None)
        state = scales_of(layer)
        fused = tuple(getattr(layer, "merged_adapters", ()))
        if before is not None and (before[0], before[2]) != (loaded, (state, fused)):
            self._changes[name] = self._changes.get(name, 1) + 1
        self._known[name] = loaded, layer, (state, fused)
        changes = self._changes.get(name)
        if loaded or changes is not None:
            self._bare.discard(name)
        else:
            self._bare.add(name)
        return name if changes is None else f"{name}#{changes}"


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
