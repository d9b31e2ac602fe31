"""Quantised networks for the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    quantize_,
)

from tiny_pipelines import FAMILIES

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "int8-weights": lambda: Int8WeightOnlyConfig(version=2),
    "int8-dynamic": lambda: Int8DynamicActivationInt8WeightConfig(version=2),
    "int4-weights": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0)),
    "int4-weights-int8-dynamic": lambda: Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerAxis(0)
    ),
}
"""What runs on a CPU, by a short name."""


def in_blocks(module: nn.Module, path: str) -> bool:
    """Linear layers inside of blocks, and no embedders, norms or projections of the whole."""
    return isinstance(module, nn.Linear) and "block" in path and "time_emb" not in path


def network_of(pipe: Any) -> nn.Module:
    found: nn.Module = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return found


def build(name: str, config: str | None = None) -> Any:
    """A tiny pipeline, quantised before anything is attached."""
    pipe = FAMILIES[name].build()
    if config is not None:
        quantize_(network_of(pipe), CONFIGS[config](), filter_fn=in_blocks)
    return pipe
