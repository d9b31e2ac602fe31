"""Facts that identify a pipeline's network, scheduler and guidance, for the profile fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from erta_framework.calibration import describe_quantized


def hash_config(config: Mapping[str, Any]) -> str:
    """Hash a configuration, without its private entries such as where it was loaded from."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    # json writes a tuple as a list, which is what it becomes when a configuration is loaded
    text = json.dumps(public, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_network(name: str, network: nn.Module) -> dict[str, str]:
    """Component name, class, configuration, LoRA adapters and quantised weights of a network.

    `adapters` is missing if none is active, `quantized` if no weight is. Adapters that were fused
    and then unloaded, and other changes of weights, cannot be seen.
    """
    inner = getattr(network, "_orig_mod", network)
    facts = {"component": name, "network": type(inner).__name__}
    config = getattr(inner, "config", None)
    if config is not None:
        facts["config"] = hash_config(dict(config))
    adapters = describe_adapters(inner)
    if adapters:
        facts["adapters"] = adapters
    return facts | describe_quantized(inner)


def describe_adapters(network: nn.Module) -> str:
    """Active (or fused) LoRA adapters with their scales, such as `style=0.8`; empty without any."""
    if not getattr(network, "peft_config", None):
        return ""
    scales: dict[str, set[float]] = {}
    for layer in network.modules():
        for name, scale in read_adapter_scales(layer).items():
            scales.setdefault(name, set()).add(scale)
    return ", ".join(
        f"{name}={'/'.join(f'{scale:g}' for scale in sorted(scales[name]))}"
        for name in sorted(scales)
    )


def read_adapter_scales(layer: nn.Module | None) -> dict[str, float]:
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


def describe_solver(scheduler: Any, eta: float = 0.0) -> str:
    """Scheduler class, hash of its configuration, and eta where it draws noise."""
    name = f"{type(scheduler).__name__}({hash_config(dict(scheduler.config))})"
    return f"{name}, eta={eta:g}" if eta > 0 else name


def describe_guidance(pipe: Any) -> str:
    """The guidance scales of this request; `unknown` if the pipeline does not keep them."""
    scales = {
        name: getattr(pipe, name)
        for name in ("_guidance_scale", "_guidance_scale_2", "_true_cfg_scale")
        if isinstance(getattr(pipe, name, None), int | float)
    }
    # 5 and 5.0 are one scale
    return ", ".join(f"{name[1:]}={float(scale)}" for name, scale in scales.items()) or "unknown"
