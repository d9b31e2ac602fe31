"""How the studies quantise a network with torchao, and what its weights then weigh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from erta_framework.optional_dependencies import require_extra


def find_integers(bits: int) -> torch.dtype:
    """The type of signed integers of so many bits, which torch has from 2.6 on."""
    found: torch.dtype = getattr(torch, f"int{bits}")
    return found


class Quantised(Protocol):
    """Makes a torchao configuration, which needs torchao."""

    def __call__(self) -> Any: ...


def weights_in_8_bits() -> Any:
    """Int8 weights; products in the type of the activations."""
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(version=2)


def all_in_8_bits() -> Any:
    """Int8 weights, activations in int8 token by token, products in int8."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig(version=2)


def weights_in_4_bits() -> Any:
    """4-bit weights, held in a byte each on a CPU."""
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis

    return IntxWeightOnlyConfig(weight_dtype=find_integers(4), granularity=PerAxis(0))


def few_bits(bits: int) -> Any:
    """Weights of few bits, and activations in int8; products in the type of the activations."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis

    return Int8DynamicActivationIntxWeightConfig(
        weight_dtype=find_integers(bits), weight_granularity=PerAxis(0)
    )


def weights_in_4_bits_all_in_8() -> Any:
    """4-bit weights, and activations in int8."""
    return few_bits(4)


def weights_in_3_bits_all_in_8() -> Any:
    """3-bit weights, and activations in int8."""
    return few_bits(3)


QUANTISATIONS: Mapping[str, Quantised] = {
    "int8 weights": weights_in_8_bits,
    "int8 dynamic": all_in_8_bits,
    "4-bit weights": weights_in_4_bits,
}
"""What a CPU runs, by the name that tables show."""


def is_in_block(module: nn.Module, path: str) -> bool:
    """Whether a module is a linear layer inside of a block, and none that embeds the time.

    Embedders, norms, modulation and the layers at both ends stay as they are, as is usual.
    """
    return isinstance(module, nn.Linear) and "block" in path and "time_emb" not in path


def quantise(network: nn.Module, config: Quantised) -> None:
    """Quantise the linear layers inside of the blocks, in place.

    Raises:
        MissingExtraError: torchao is not installed.
    """
    require_extra("torchao", extra="quantization", wanted_by="a study of quantised networks")
    from torchao.quantization import quantize_

    quantize_(network, config(), filter_fn=is_in_block)


def count_weight_bytes(network: nn.Module, packed: bool = True) -> int:
    """Bytes of the weights of a network.

    Args:
        network: The network.
        packed: Whether numbers of fewer than 8 bits count with their bits, as they do where they
            are packed; else as they are held here.
    """
    total = 0.0
    for weight in network.parameters():
        flatten = getattr(weight, "__tensor_flatten__", None)
        if flatten is None:
            total += weight.nbytes
            continue
        names, settings = flatten()
        bits = read_bits(settings.get("target_dtype", torch.int8)) if packed else 8
        for name in names:
            inner = getattr(weight, name)
            total += inner.nbytes * (bits / 8 if name == "qdata" else 1)
    return round(total)


def read_bits(dtype: torch.dtype) -> int:
    """Bits of an integer type, such as 4 of `torch.int4`."""
    return int(str(dtype).removeprefix("torch.").lstrip("uint"))
