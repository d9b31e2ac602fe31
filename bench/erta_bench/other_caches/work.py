"""What really ran inside a network, counted below whatever a cache puts around its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ABSENT = object()


@dataclass(slots=True)
class Work:
    """What the layers of the networks really computed.

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
        """Count no more, and put the layers back as they were."""
        while self._undo:
            self._undo.pop()()


def replaced(owner: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Set `owner.forward` on this instance; the returned function puts back what was there."""
    before = vars(owner).get("forward", ABSENT)
    vars(owner)["forward"] = forward

    def undo() -> None:
        if before is ABSENT:
            vars(owner).pop("forward", None)
        else:
            vars(owner)["forward"] = before

    return undo


def kept(networks: Iterable[nn.Module]) -> Callable[[], None]:
    """Remember how the parts of networks run; the returned function puts that back.

    cache-dit leaves a `forward` of its own, and a mark, on some networks that it was switched off
    for, and their lists of blocks in another order, by which diffusers' caches look for the first
    block. The caches of others would then meet a network that is not the model's.
    """
    names = ("forward", "_is_patched")
    before = [
        (part, {name: vars(part)[name] for name in names if name in vars(part)}, [*children(part)])
        for network in networks
        for part in network.modules()
    ]

    def undo() -> None:
        for part, own, held in before:
            for name in names:
                vars(part).pop(name, None)
            vars(part).update(own)
            if [*children(part)] != held:
                part._modules.clear()
                part._modules.update(held)

    return undo


def children(part: nn.Module) -> Iterable[tuple[str, nn.Module | None]]:
    """What a part holds, by name and in order, as `named_children` without leaving any out."""
    return part._modules.items()


def watched(networks: Iterable[nn.Module]) -> Work:
    """Count from now on.

    A layer's own `forward` is replaced before any cache is switched on, so whatever a cache puts
    around it decides first: only what was really computed is counted.
    """
    work = Work()
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, LAYERS):
                count(layer, work)
        handle = network.register_forward_pre_hook(
            lambda _, args, kwargs: note_batch(work, args, kwargs), with_kwargs=True
        )
        work._undo.append(handle.remove)
    return work


def count(layer: nn.Module, work: Work) -> None:
    """Count the runs of one layer."""
    own = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = own(*args, **kwargs)
        work.calls += 1
        work.elements += output.numel()
        return output

    work._undo.append(replaced(layer, forward))


def note_batch(work: Work, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep the number of samples of the first call."""
    latents = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else ()))
    work.batch = work.batch or len(latents)
