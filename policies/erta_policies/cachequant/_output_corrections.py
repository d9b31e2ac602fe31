"""Correction of quantised linear layers: their outputs are moved along a line for each channel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from erta_framework import Profile
from erta_framework.errors import ProfileMismatchError
from erta_policies.cachequant._outputs import (
    CORRECTED,
    KIND,
    MOMENTS,
    find_layer,
    name_network,
    refuse_corrected,
)
from erta_policies.shared import PairMoments, apply_line, fit_line


class OutputCorrections:
    """Corrections that are on a network until `remove`, or the end of a `with`.

    They are forward hooks of single layers; no class and no weight is changed.

    Attributes:
        paths: The corrected layers.
    """

    def __init__(self, handles: Mapping[str, tuple[nn.Module, RemovableHandle]]) -> None:
        self._handles = dict(handles)
        CORRECTED.update(layer for layer, _ in self._handles.values())

    @property
    def paths(self) -> tuple[str, ...]:
        """The corrected layers; none after `remove`."""
        return tuple(self._handles)

    def remove(self) -> None:
        """Take the corrections off."""
        while self._handles:
            _, (layer, handle) = self._handles.popitem()
            handle.remove()
            CORRECTED.discard(layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def correct_outputs(network: nn.Module, profile: Profile, shrink: float = 0.0) -> OutputCorrections:
    """Correct the outputs of quantised layers, from now until the corrections are removed.

    Worth its multiplication for weights of 4 bits and fewer; at 8 bits there is next to nothing to
    correct.

    Args:
        network: The quantised network that the profile was calibrated on.
        profile: From `calibrate_outputs`.
        shrink: Pulls slopes towards 1, see `erta_policies.shared.fit_line`.

    Raises:
        ProfileMismatchError: The profile is of another network, or of another quantisation.
        ProfileError: It is of another kind.
        PolicyError: A layer is corrected already.

    Example:
        >>> with correct_outputs(pipe.unet, profile):  # doctest: +SKIP
        ...     pipe("a cat")
    """
    profile.require_kind(KIND, wanted_by="correct_outputs")
    check_network(network, profile)
    names = sorted({key.rpartition("/")[0] for key in profile.statistics})
    layers = {name: find_layer(network, name) for name in names}
    for name, layer in layers.items():
        refuse_corrected(layer, name)
    handles: dict[str, tuple[nn.Module, RemovableHandle]] = {}
    for name, layer in layers.items():
        moments = PairMoments(*(profile.statistics[f"{name}/{entry}"] for entry in MOMENTS))
        line = fit_line(moments, shrink=shrink)
        like = layer.bias if layer.bias is not None else line.slope
        slope, offset = (part.to(like.device, torch.float32) for part in (line.slope, line.offset))
        if layer.bias is not None:
            # the line is of the output without its bias: a2 (y - bias) + b2 + bias
            offset = offset + (1 - slope) * layer.bias.detach().float()
        handles[name] = layer, layer.register_forward_hook(partial(correct, slope, offset))
    return OutputCorrections(handles)


def correct(
    slope: Tensor, offset: Tensor, layer: nn.Module, args: tuple[Any, ...], output: Tensor
) -> Tensor:
    """The output along its line."""
    return apply_line(output, slope.to(output.device), offset.to(output.device))


def check_network(network: nn.Module, profile: Profile) -> None:
    """Refuse corrections of another network.

    Raises:
        ProfileMismatchError: Names every field that differs.
    """
    here = name_network(network)
    wrong = [
        f"  {name}: profile {profile.fingerprint.get(name, 'nothing')!r} / network "
        f"{here.get(name, 'nothing')!r}"
        for name in sorted({*here, *profile.fingerprint})
        if here.get(name) != profile.fingerprint.get(name)
    ]
    if wrong:
        raise ProfileMismatchError(
            "these corrections were calibrated on another network:\n"
            + "\n".join(wrong)
            + "\nquantise the network as it was then, or calibrate again"
        )
