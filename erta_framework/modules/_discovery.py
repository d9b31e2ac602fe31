"""Finds the places of a network at which an output can be kept: blocks, attention, MLPs, stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.modules._kinds import (
    find_fused,
    find_stages,
    find_units,
    holds_attention,
    is_attention,
    is_cross,
    is_mlp,
    stands_aside,
)
from erta_framework.modules._places import Kind, Place
from erta_framework.modules._source import iter_children

OUTSIDE = -1
"""Depth of what is outside of the trunk."""


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself where `torch.compile` wrapped it."""
    inner = getattr(network, "_orig_mod", network)
    return inner if isinstance(inner, nn.Module) else network


def find_places(network: nn.Module) -> tuple[Place, ...]:
    """Find every place of a network whose output can be kept, in the order of execution.

    Classes, attributes and the source of `forward` say what a module is; there is no table of
    models. What stands inside another place follows it: a block, then its attention.

    * `block`: a member of a list all of whose members hold an attention. The lists of the network
      itself are its trunk; the depth of all others, such as a text refiner's, is -1.
    * `attention`, `cross`, `mlp`: the parts of blocks, and any other attention of a UNet's stages.
    * `down`, `mid`, `up`: the stages of a UNet; `unit`: a resnet of a stage with the attention and
      the temporal layers that follow it.

    Args:
        network: Such as `pipe.transformer`, or any module that holds such a network.

    Raises:
        CapabilityError: There is none; names the class and the lists that it has.

    Example:
        >>> for place in find_places(pipe.transformer)[:4]:  # doctest: +SKIP
        ...     print(place.kind, place)
        block blocks.0
        attention blocks.0.attn1
        cross blocks.0.attn2
        mlp blocks.0.ffn
    """
    inner = unwrap(network)
    path, root = find_root(inner)
    walk = Walk(find_stages(root), find_block_lists(root), path)
    places = tuple(walk.run(root, "", Around()))
    if not places:
        refuse(inner)
    return places


def refuse(network: nn.Module) -> NoReturn:
    """Say that a network has no places, and what it has.

    Raises:
        CapabilityError: Always.
    """
    lists = [
        f"{name} ({len(part)} x {type(part[0]).__name__})"
        for name, part in network.named_modules()
        if isinstance(part, nn.ModuleList) and len(part)
    ]
    raise CapabilityError(
        f"{type(network).__name__} has no places whose outputs can be kept: no list of blocks that "
        "hold an attention, and no down_blocks and up_blocks of a UNet; its lists are: "
        f"{', '.join(lists) or 'none'}; use a policy at seam='latent'"
    )


def find_root(network: nn.Module) -> tuple[str, nn.Module]:
    """The UNet inside a module, with its path; the module itself where there is none."""
    modules = sorted(network.named_modules(), key=lambda found: found[0].count("."))
    return next((found for found in modules if find_stages(found[1])), ("", network))


def find_block_lists(root: nn.Module) -> dict[str, bool]:
    """Paths of the lists of blocks, and whether a list belongs to the trunk.

    All members of such a list hold an attention, and no such list is inside it. The trunk's own are
    those in the stages of a UNet; in other networks, those that are closest to the network.
    """
    lists = [
        path
        for path, part in root.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) and all(map(is_block, part))
    ]
    lists = [path for path in lists if not any(other.startswith(f"{path}.") for other in lists)]
    stages = tuple(f"{stage}." for stage in find_stages(root))
    if stages:
        return {path: path.startswith(stages) for path in lists}
    closest = min((path.count(".") for path in lists), default=0)
    return {path: path.count(".") == closest for path in lists}


def is_block(module: nn.Module) -> bool:
    """Whether a member of a list may be a block: it holds an attention, and is no stage."""
    stage = isinstance(getattr(module, "resnets", None), nn.ModuleList)
    return not stage and not isinstance(module, nn.ModuleList) and holds_attention(module)


@dataclass(frozen=True, slots=True)
class Around:
    """What stands around a module.

    Attributes:
        stack: Path of the list that the nearest block, or else the module, is a member of.
        depth: Depth of the nearest block; None outside of blocks.
    """

    stack: str = ""
    depth: int | None = None


class Walk:
    """One pass over a network in the order of execution.

    Attributes:
        stages: Paths of a UNet's stages, within the root, and what they are.
        lists: Paths of the lists of blocks, within the root, and whether they are the trunk's.
        prefix: What stands before the paths within the root.
    """

    def __init__(self, stages: Mapping[str, Kind], lists: Mapping[str, bool], prefix: str) -> None:
        self.stages, self.lists = stages, lists
        self.prefix = f"{prefix}." if prefix else ""
        self._started = 0

    def run(self, module: nn.Module, path: str, around: Around) -> Iterator[Place]:
        """The places inside a module that stands at a path of the root."""
        units = find_units(module) if self.stages.get(path, "mid") != "mid" else {}
        fused = find_fused(module) if around.depth is not None else {}
        feeding = {part for parts in fused.values() for part in parts}
        children = list(iter_children(module))
        order = [name for name, _ in children]
        for name, child in children:
            where = join(path, name)
            if name in units:
                unit, parts = units[name]
                yield self._make(join(path, f"unit:{unit}"), "unit", Around(path), path, parts)
            if name in fused:
                before = sorted(fused[name], key=order.index)
                yield self._make(where, "mlp", around, path, [*before, name])
            elif name not in feeding or is_attention(child):
                yield from self._look_at(child, name, where, around)

    def _look_at(self, child: nn.Module, name: str, path: str, around: Around) -> Iterator[Place]:
        """The places of one child, and of what is inside it."""
        owner, _, index = path.rpartition(".")
        stack = owner if index.isdigit() else around.stack
        if path in self.stages:
            around = Around(stack or path)
            yield self._make(path, self.stages[path], around)
        elif stack == owner and owner in self.lists:
            around = Around(stack, self._begin() if self.lists[stack] else OUTSIDE)
            yield self._make(path, "block", around)
        elif is_attention(child):
            if around.depth is None and self._counts(path, stack):
                around = Around(stack, self._begin())
            if around.depth is not None:
                yield self._make(path, "cross" if is_cross(name, child) else "attention", around)
            return
        elif around.depth is not None and is_mlp(name, child):
            yield self._make(path, "mlp", around)
            return
        elif stands_aside(child):
            return
        elif around.depth is None:
            around = Around(stack)
        yield from self.run(child, path, around)

    def _counts(self, path: str, stack: str) -> bool:
        """Whether an attention outside of blocks is a place: in a stage, or where no blocks are."""
        return path.startswith(tuple(f"{stage}." for stage in self.stages)) or (
            not self.lists and bool(stack)
        )

    def _make(
        self, path: str, kind: Kind, around: Around, inside: str = "", members: Sequence[str] = ()
    ) -> Place:
        return Place(
            f"{self.prefix}{path}",
            kind,
            self._started if around.depth is None else around.depth,
            f"{self.prefix}{around.stack}",
            tuple(f"{self.prefix}{join(inside, member)}" for member in members),
        )

    def _begin(self) -> int:
        """Depth of what begins now."""
        self._started += 1
        return self._started - 1


def join(path: str, name: str) -> str:
    """The path of something inside a path."""
    return f"{path}.{name}" if path else name
