"""Finds the block stack of a transformer: the lists of blocks that its `forward` iterates."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.network import get_signature

EARLIER = re.compile(r"skip|res_hidden_states|res_samples")
"""Parameters by which a block takes the output of an earlier block, as in a U-Net."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One block: the name of its list, its place in the list, and its module."""

    stack: str
    index: int
    module: nn.Module

    @property
    def name(self) -> str:
        """Path within the network, such as `blocks.0`."""
        return f"{self.stack}.{self.index}"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters of its `forward`."""
        return tuple(get_signature(type(self.module).forward).parameters)


def discover(network: nn.Module) -> dict[str, tuple[Block, ...]]:
    """Find the lists of blocks that a network runs one block after another, in that order.

    These are the `nn.ModuleList`s that its `forward` iterates. If the source is not available,
    all of its `nn.ModuleList`s are taken.

    Raises:
        CapabilityError: There is no list, the network is compiled as a whole, two lists alternate,
            or blocks take the outputs of earlier ones; names the class and the reason.
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
    loops = find_loops(type(network), lists)
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
            raise CapabilityError(explain_skips(cls, blocks[0], ", ".join(taken)))
    return found


def explain_skips(cls: str, block: Block, taken: str) -> str:
    """The message for a block that takes the outputs of earlier blocks."""
    return (
        f"{cls} has no trunk that can be skipped: its {block.stack} "
        f"({type(block.module).__name__}) take the outputs of earlier blocks ({taken}); use "
        "seam='latent'"
    )


def find_loops(cls: type[nn.Module], lists: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Find the lists that each `for` loop of `cls.forward` iterates, in the order of the source."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward)))
    except (OSError, TypeError):
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.For | ast.comprehension):
            names = tuple(
                part.attr
                for part in ast.walk(node.iter)
                if isinstance(part, ast.Attribute) and part.attr in lists
            )
            if names:
                found.append((node.iter.lineno, names))
    return [names for _, names in sorted(found)]
