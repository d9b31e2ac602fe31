"""Where a UNet can be cut: what a cut leaves out, and whose output enters again."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.modules._discovery import (
    OUTSIDE,
    find_places,
    find_root,
    join,
    unwrap,
)
from erta_framework.modules._kinds import find_stages, find_units
from erta_framework.modules._places import Place
from erta_framework.modules._source import parse_method


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a stage that makes or takes one skip.

    Attributes:
        stage: Path of the stage.
        modules: Paths of its modules, in the order of execution.
    """

    stage: str
    modules: tuple[str, ...]


def find_cut(network: nn.Module, branch: int) -> Place:
    """Find what a cut of a UNet leaves out: everything between a skip and the unit that takes it.

    Skips count in the order in which they are made: 0 is the output of `conv_in`, then comes that
    of every unit and of every downsampler of the down stages. A network call that is cut at skip
    `b` runs `conv_in` and the first `b` of these parts; what enters the up unit that takes skip `b`
    is the kept output of the last member; the rest of the network runs. The cut is that of
    arXiv 2312.00858, section 3.2, where `b` is the branch.

    Args:
        network: Such as `pipe.unet`.
        branch: Number of the skip.

    Returns:
        A place whose members are left out, whole stages where that is possible; the output of the
        last one is kept and reused.

    Raises:
        CapabilityError: The network is no UNet that can be cut, or has no such skip; names the
            range.

    Example:
        >>> find_cut(pipe.unet, 0).members  # doctest: +SKIP
        ('down_blocks.0', 'down_blocks.1', 'mid_block', 'up_blocks.0', 'up_blocks.1.resnets.0')
    """
    inner = unwrap(network)
    prefix, root = find_root(inner)
    makers, takers = find_parts(root, type(inner).__name__)
    highest = count_branches(root, makers) - 1
    if isinstance(branch, bool) or not 0 <= branch <= highest:
        raise CapabilityError(
            f"{type(inner).__name__} has no skip {branch!r} to cut at; give a branch from 0 to "
            f"{highest}: its {len(makers) + 1} skips in the order in which they are made"
        )
    left_out = makers[branch:]  # makers[0] makes skip 1
    ahead = takers[: len(takers) - 1 - branch]
    paths = merge_stages(left_out, makers) + find_middle(root) + merge_stages(ahead, takers)
    members = tuple(join(prefix, path) for path in paths)
    depth = min(place.depth for place in find_places(inner) if stands_in(place, members))
    return Place(f"cut:{branch}", "cut", depth, members=members)


def find_branches(network: nn.Module) -> range:
    """The skips that a network can be cut at; empty where it cannot be cut.

    Example:
        >>> find_branches(pipe.unet)  # doctest: +SKIP
        range(0, 12)
    """
    inner = unwrap(network)
    _, root = find_root(inner)
    try:
        makers, _ = find_parts(root, type(inner).__name__)
    except CapabilityError:
        return range(0)
    return range(count_branches(root, makers))


def find_parts(root: nn.Module, name: str) -> tuple[list[Part], list[Part]]:
    """The parts that make skips 1, 2, ... and those that take skips, both in execution order.

    Raises:
        CapabilityError: The network has no stages, or its stages pass skips in another way.
    """
    stages = find_stages(root)
    if not stages:
        raise CapabilityError(
            f"{name} cannot be cut: it is no UNet with down_blocks and up_blocks that hold "
            "resnets; select blocks or a span of them"
        )
    makers, takers = [], []
    for path, kind in stages.items():
        stage = root.get_submodule(path)
        if kind == "mid":
            continue
        refuse_other_skips(stage, path, kind == "up", name)
        units = [Part(path, names) for _, names in find_units(stage).values()]
        if kind == "up":
            takers += units
            continue
        makers += units
        samplers = getattr(stage, "downsamplers", None)
        if isinstance(samplers, nn.ModuleList) and len(samplers):
            names = tuple(f"downsamplers.{index}" for index in range(len(samplers)))
            makers.append(Part(path, names))
    if len(makers) + 1 != len(takers):
        raise CapabilityError(
            f"{name} cannot be cut: it makes {len(makers) + 1} skips and its up stages take "
            f"{len(takers)}"
        )
    return makers, takers


def refuse_other_skips(stage: nn.Module, path: str, is_up: bool, name: str) -> None:
    """Refuse a stage whose units do not take one skip each, or that passes more than skips.

    Raises:
        CapabilityError: Names the network, the stage and its class.
    """
    forward = parse_method(type(stage))
    if forward is None:
        return
    takes_more = any(argument.arg == "skip_sample" for argument in forward.args.args)
    if takes_more or (is_up and "[:-1]" not in ast.unparse(forward)):
        raise CapabilityError(
            f"{name} cannot be cut: units of its {path} ({type(stage).__name__}) do not take one "
            "skip each; select whole stages"
        )


def find_middle(root: nn.Module) -> list[str]:
    """Path of the stage in the middle, in a list; empty where there is none."""
    return [path for path, kind in find_stages(root).items() if kind == "mid"]


def count_branches(root: nn.Module, makers: list[Part]) -> int:
    """How many skips a network can be cut at: the last only where there is a stage to leave out."""
    return len(makers) + bool(find_middle(root))


def merge_stages(left_out: list[Part], parts: list[Part]) -> list[str]:
    """Paths of the modules of some parts; a stage all of whose parts are left out is one path."""
    kept = {part.stage for part in parts if part not in left_out}
    paths: list[str] = []
    for part in left_out:
        inside = part.stage in kept
        names = [join(part.stage, name) for name in part.modules] if inside else [part.stage]
        paths += [name for name in names if name not in paths]
    return paths


def stands_in(place: Place, members: tuple[str, ...]) -> bool:
    """Whether a place of the trunk is one of some modules, or inside one."""
    first = place.modules[0]
    inside = any(first == member or first.startswith(f"{member}.") for member in members)
    return inside and place.depth != OUTSIDE
