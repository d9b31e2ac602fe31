"""Which weights of a network are quantised, for the fingerprint of a profile."""

from __future__ import annotations

import hashlib
from collections import Counter

from torch import Tensor, nn


def describe_quantized(network: object) -> dict[str, str]:
    """How many weights are held in tensors of other libraries, and in which; empty if none are.

    torchao and bitsandbytes quantise a weight by putting a tensor of their own in its place; the
    types and settings of such tensors are hashed. Layers that hold their weights as buffers are not
    seen.

    Example:
        >>> describe_quantized(nn.Linear(2, 2))
        {}
    """
    if not isinstance(network, nn.Module):
        return {}
    found: Counter[str] = Counter()
    settings: set[str] = set()
    for weight in network.parameters():
        kind = type(weight)
        if kind.__module__.partition(".")[0] != "torch":
            found[kind.__name__] += 1
            settings.add(f"{kind.__qualname__} {read_settings(weight)}")
    if not found:
        return {}
    digest = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:8]
    kinds = ", ".join(f"{number} {name}" for name, number in sorted(found.items()))
    return {"quantized": f"{kinds} ({digest})"}


def read_settings(weight: Tensor) -> str:
    """What a tensor of another library says of itself beside its numbers, in words."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    return "" if flatten is None else repr(flatten()[1])
