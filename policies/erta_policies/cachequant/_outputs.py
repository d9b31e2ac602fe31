"""What quantised linear layers get wrong: sums for a line for each output channel.

CacheQuant (arXiv 2503.01323) corrects the error of quantisation at the layers that consume the
reused tensor. With O of the original weights and Oq of the quantised ones, both without bias and at
the same input, `a2 = cov(Oq, O) / var(Oq)` and `b2 = mean(O) - a2 mean(Oq)` for each output
channel. The paper has a line for each step and scales packed weights by a2; one line for all steps,
fitted without the bias and applied to the output, is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

from erta_framework import Profile
from erta_framework.calibration import describe_quantized
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.shared import PairMoments

KIND = "quantized_outputs"
MOMENTS = ("count", "x", "xx", "y", "yy", "xy")
CORRECTED: WeakSet[nn.Module] = WeakSet()
"""Layers that are corrected now."""


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """The original weights of some linear layers of a network, to fit corrections with.

    Attributes:
        weights: By path of the layer.
    """

    weights: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(weight.nbytes for weight in self.weights.values())


def keep_weights(network: nn.Module, path: str) -> KeptWeights:
    """Copy the weights of some linear layers, before the network is quantised.

    Args:
        network: Such as `pipe.transformer`.
        path: A regular expression that the path of a layer must match as a whole: those that
            consume the reused tensor, such as `"blocks[.]4[.]attn1[.]to_[qkv]"`.

    Raises:
        PolicyError: No linear layer matches, or one is quantised already.

    Example:
        >>> keep_weights(nn.Sequential(nn.Linear(2, 3)), ".*").nbytes
        24
    """
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(path, name):
            if describe_quantized(module):
                raise PolicyError(
                    f"{name} of {type(network).__name__} is quantised already; keep its weights "
                    "before quantising"
                )
            found[name] = module.weight.detach().clone()
    if not found:
        raise PolicyError(
            f"no linear layer of {type(network).__name__} matches {path!r}; `named_modules()` "
            "lists them"
        )
    return KeptWeights(found)


def calibrate_outputs(
    network: nn.Module, kept: KeptWeights, run: Callable[[], object], samples: int = 1
) -> Profile:
    """Sum how quantised layers differ from the original ones, at the inputs that they get.

    Profiles of several runs merge by adding. Nothing stays on the network.

    Args:
        network: The quantised network.
        kept: What `keep_weights` gave.
        run: Samples with the network, such as `lambda: pipe(prompts)`. If a policy reuses, the
            layers get corrected inputs, as in the paper.
        samples: Samples that it draws, for the profile.

    Raises:
        PolicyError: A layer is not quantised, is corrected already, or did not run.

    Example:
        >>> profile = calibrate_outputs(unet, kept, lambda: pipe(prompts))  # doctest: +SKIP
    """
    sums: dict[str, PairMoments] = {}
    with ExitStack() as stack:
        for name, weight in kept.weights.items():
            layer = find_layer(network, name)
            refuse_corrected(layer, name)
            if not describe_quantized(layer):
                raise PolicyError(
                    f"{name} of {type(network).__name__} is not quantised, so it has no error to "
                    "correct; quantise the network, then calibrate"
                )
            handle = layer.register_forward_hook(partial(compare, sums, name, weight))
            stack.callback(handle.remove)
        run()
    idle = [name for name in kept.weights if name not in sums]
    if idle:
        raise PolicyError(f"{', '.join(idle)} did not run; let `run` sample with this network")
    statistics = {
        f"{name}/{entry}": getattr(moments, entry).double().cpu()
        for name, moments in sums.items()
        for entry in MOMENTS
    }
    return Profile(KIND, name_network(network), statistics, samples)


@torch.no_grad()
def compare(
    sums: dict[str, PairMoments],
    name: str,
    weight: Tensor,
    layer: nn.Linear,
    args: tuple[Any, ...],
    output: Tensor,
) -> None:
    """Add what one call of a layer shows, without the bias."""
    given: Tensor = args[0]
    expected = functional.linear(given, weight.to(given.device, given.dtype))
    bare = output if layer.bias is None else output - layer.bias
    found = PairMoments.of(bare, expected, dim=-1)
    sums[name] = sums[name] + found if name in sums else found


def find_layer(network: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its path.

    Raises:
        ProfileError: There is none.
    """
    layer = dict(network.named_modules()).get(name)
    if not isinstance(layer, nn.Linear):
        raise ProfileError(
            f"{type(network).__name__} has no linear layer {name}; calibrate on this network"
        )
    return layer


def name_network(network: nn.Module) -> dict[str, str]:
    """What corrections depend on."""
    return {"network": type(network).__name__, **describe_quantized(network)}


def refuse_corrected(layer: nn.Module, name: str) -> None:
    """Refuse a layer that is corrected now.

    Raises:
        PolicyError: Names it.
    """
    if layer in CORRECTED:
        raise PolicyError(f"{name} is corrected already; remove() those corrections first")
