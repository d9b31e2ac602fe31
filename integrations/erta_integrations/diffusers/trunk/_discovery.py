"""The block stack of a transformer, found by discovery, and what is printed about it."""

from __future__ import annotations

import ast
import inspect as reflection
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.network import find_networks, signature_of
from erta_integrations.diffusers.trunk import _signals as signals

EARLIER = re.compile(r"skip|res_hidden_states|res_samples")
STREAM = re.compile(r"hidden_states$|^x$")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One block: the list it stands in, its place there, and its module."""

    stack: str
    index: int
    module: nn.Module

    @property
    def name(self) -> str:
        """Path within the network, such as `blocks.0`."""
        return f"{self.stack}.{self.index}"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what its `forward` takes."""
        return tuple(signature_of(type(self.module).forward).parameters)


def discover(network: nn.Module) -> dict[str, tuple[Block, ...]]:
    """The lists of blocks that a network runs one member after another, in that order.

    These are its own `nn.ModuleList`s that its `forward` iterates; where no source is at hand, all
    of them.

    Raises:
        CapabilityError: There is none, it is compiled as a whole, two lists alternate, or blocks
            take the outputs of earlier ones; says which class and why.
    """
    cls = type(network).__name__
    if hasattr(network, "_orig_mod"):
        raise CapabilityError(
            f"{type(network._orig_mod).__name__} is compiled as a whole, which leaves no blocks to "
            "skip; use compile_repeated_blocks() instead of torch.compile, or seam='latent'"
        )
    lists = {
        name: child
        for name, child in network.named_children()
        if isinstance(child, nn.ModuleList) and len(child)
    }
    loops = loops_over(type(network), lists)
    order = [name for loop in loops for name in loop] or list(lists)
    found = {
        name: tuple(Block(name, i, module) for i, module in enumerate(lists[name]))
        for name in dict.fromkeys(order)
    }
    if not found:
        raise CapabilityError(
            f"{cls} has no trunk: its forward runs no list of blocks (nn.ModuleList) one after "
            "another; use seam='latent'"
        )
    alternating = next((loop for loop in loops if len(loop) > 1), None)
    if alternating:
        raise CapabilityError(
            f"{cls} has no single trunk: its {' and '.join(alternating)} alternate, with tokens "
            "regrouped in between; use seam='latent'"
        )
    for blocks in found.values():
        taken = [name for name in blocks[0].parameters if EARLIER.search(name)]
        if taken:
            raise CapabilityError(skips(cls, blocks[0], ", ".join(taken)))
    return found


def skips(cls: str, block: Block, taken: str) -> str:
    """The message for stacks whose later blocks take the outputs of earlier ones."""
    return (
        f"{cls} has no trunk that can be skipped: its {block.stack} "
        f"({type(block.module).__name__}) take the outputs of earlier blocks ({taken}); use "
        "seam='latent'"
    )


def longest(stacks: Mapping[str, Sequence[Block]]) -> int:
    """Blocks in the longest list; the trunk has at least as many."""
    return max(map(len, stacks.values()))


def loops_over(cls: type[nn.Module], lists: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lists that each `for` loop of `cls.forward` iterates, in the order of the source."""
    try:
        source = textwrap.dedent(reflection.getsource(reflection.unwrap(cls.forward)))
    except (OSError, TypeError):
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.For | ast.comprehension):
            named = tuple(
                part.attr
                for part in ast.walk(node.iter)
                if isinstance(part, ast.Attribute) and part.attr in lists
            )
            if named:
                found.append((node.iter.lineno, named))
    return [named for _, named in sorted(found)]


@lru_cache(maxsize=256)
def returned_names(forward: Callable[..., Any]) -> list[tuple[str, ...]]:
    """The names that each `return` of a block's `forward` lists; empty where it is no name."""
    try:
        source = textwrap.dedent(reflection.getsource(reflection.unwrap(forward)))
    except (OSError, TypeError):
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Return) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            found.append(tuple(v.id if isinstance(v, ast.Name) else "" for v in values))
    return found


def first_blocks(stacks: Mapping[str, Sequence[Block]]) -> list[nn.Module]:
    """The first block of each list; the trunk begins with one of them."""
    return [blocks[0].module for blocks in stacks.values()]


def inspect(pipe: Any, networks: Sequence[str] | None = None) -> str:
    """What `attach` finds in a pipeline: networks, lists of blocks, streams, signals and seams.

    Args:
        pipe: A diffusers pipeline.
        networks: Names of components, as in `attach`.

    Example:
        >>> print(inspect(pipe))  # doctest: +SKIP
        transformer: WanTransformer3DModel
          text: prompt, prompt_mask
          blocks: 30 x WanTransformerBlock, streams hidden_states, encoder_hidden_states
          signals: modulated_input, timestep_embedding, timestep_projection
          probes: probe:1 to probe:29
          seams: latent, trunk
    """
    lines = []
    for name, network in find_networks(pipe, networks).items():
        inner = getattr(network, "_orig_mod", network)
        lines.append(f"{name}: {type(inner).__name__}")
        if text := signals.of_text([network]):
            lines.append(f"  text: {signals.listed(text)}")
        try:
            stacks = discover(network)
        except CapabilityError as error:
            lines += [
                "  signals: none",
                "  probes: none",
                "  seams: latent",
                f"  no trunk: {error}",
            ]
            continue
        for stack, blocks in stacks.items():
            classes = dict.fromkeys(type(block.module).__name__ for block in blocks)
            streams = [p for p in blocks[0].parameters if STREAM.search(p)]
            lines.append(
                f"  {stack}: {len(blocks)} x {' / '.join(classes)}, "
                f"streams {', '.join(streams) or 'unknown'}"
            )
        offered = signals.available(network, first_blocks(stacks), longest(stacks))
        probes = frozenset(name for name in offered if signals.depth_of(name))
        lines += [
            f"  signals: {signals.listed(offered - probes)}",
            f"  probes: {signals.listed(probes)}",
            "  seams: latent, trunk",
        ]
    return "\n".join(lines)
