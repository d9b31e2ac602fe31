"""Counts what the layers of a network computed, below whatever a cache puts around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ABSENT = object()


@dataclass(slots=True)
class LayerWork:
    """What the layers of networks really computed.

    Attributes:
        calls: Runs of a linear or convolution layer.
        elements: Elements of their outputs; fewer too where only a part of a batch was computed.
        batch: Samples of the first network call.
    """

    calls: int = 0
    elements: int = 0
    batch: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def stop(self) -> None:
        """Stop counting, and put the layers back as they were."""
        while self._undo:
            self._undo.pop()()


def replace_forward(owner: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Set `owner.forward` on this instance; the returned function puts back what was there."""
    before = vars(owner).get("forward", ABSENT)
    vars(owner)["forward"] = forward

    def undo() -> None:
        if before is ABSENT:
            vars(owner).pop("forward", None)
        else:
            vars(owner)["forward"] = before

    return undo


def remember_parts(networks: Iterable[nn.Module]) -> Callable[[], None]:
    """Remember how the parts of networks run; the returned function puts that back.

    cache-dit does not undo everything when it is switched off. On some networks it leaves a
    `forward` of its own, a mark, and the lists of blocks in another order. diffusers' caches find
    the first block by that order, so the next cache would run on a changed network.
    """
    names = ("forward", "_is_patched")
    before = [
        (
            part,
            {name: vars(part)[name] for name in names if name in vars(part)},
            [*list_children(part)],
        )
        for network in networks
        for part in network.modules()
    ]

    def undo() -> None:
        for part, own, held in before:
            for name in names:
                vars(part).pop(name, None)
            vars(part).update(own)
            if [*list_children(part)] != held:
                part._modules.clear()
                part._modules.update(held)

    return undo


def list_children(part: nn.Module) -> Iterable[tuple[str, nn.Module | None]]:
    """The children of a part by name, in order, with the empty ones that `named_children` drops."""
    return part._modules.items()


def watch_layers(networks: Iterable[nn.Module]) -> LayerWork:
    """Count from now on.

    Call it before any cache is switched on. A cache then wraps the counting `forward`, so that a
    layer which the cache skips is not counted.
    """
    work = LayerWork()
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, LAYERS):
                count_layer(layer, work)
        handle = network.register_forward_pre_hook(
            lambda _, args, kwargs: note_batch(work, args, kwargs), with_kwargs=True
        )
        work._undo.append(handle.remove)
    return work


def count_layer(layer: nn.Module, work: LayerWork) -> None:
    """Count the runs of one layer."""
    own = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = own(*args, **kwargs)
        work.calls += 1
        work.elements += output.numel()
        return output

    work._undo.append(replace_forward(layer, forward))


def note_batch(work: LayerWork, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep the number of samples of the first call."""
    latents = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else ()))
    work.batch = work.batch or len(latents)
