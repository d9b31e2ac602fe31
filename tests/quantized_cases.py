"""Tiny pipelines with quantised networks, for the tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from erta_bench.studies import LAYERS, QUANTISATIONS, quantise
from tiny_pipelines import FAMILIES

CONFIGS = {**QUANTISATIONS, "4-bit weights, int8 dynamic": LAYERS["W4A8"]}
"""What runs on a CPU."""


def network_of(pipe: Any) -> nn.Module:
    """The network of a pipeline."""
    found: nn.Module = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return found


def build(name: str, config: str | None = None) -> Any:
    """A tiny pipeline, quantised before anything is attached."""
    pipe = FAMILIES[name].build()
    if config is not None:
        quantise(network_of(pipe), CONFIGS[config])
    return pipe
