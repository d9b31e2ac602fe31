"""`Finder`: how a driver finds the places of a network; and a finder for any transformer."""

from __future__ import annotations

import re
from typing import Protocol

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.modules._places import Kind, Place

ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
CROSS = re.compile(r"(^|_)(attn2|cross\w*)$")
MLP_NAME = re.compile(r"^(ff|ffn|mlp|feed_forward|ff_context|img_mlp|txt_mlp)$")
MLP_CLASS = re.compile(r"FeedForward|MLP|SwiGLU", re.IGNORECASE)


class Finder(Protocol):
    """Finds the places of a network."""

    def find_places(self, network: nn.Module) -> tuple[Place, ...]:
        """Every place, in the order of execution; empty if there is none."""
        ...

    def find_cut(self, network: nn.Module, branch: int) -> Place:
        """The deep part of a UNet below one of its skip connections, as one place.

        Raises:
            CapabilityError: It is no UNet, or has no such connection.
        """
        ...


class BlockFinder:
    """Finds blocks, and attention and MLPs within them, in any network of lists of blocks.

    A list of blocks is an `nn.ModuleList` all of whose members hold an attention. Lists are taken
    in the order in which the network defines them; a list inside a block of another is not one.
    """

    def find_places(self, network: nn.Module) -> tuple[Place, ...]:
        """The blocks, each followed by its attention and MLPs."""
        found: list[Place] = []
        depth = 0
        lists: list[str] = []
        for path, module in network.named_modules():
            if not isinstance(module, nn.ModuleList) or not len(module):
                continue
            if any(path.startswith(f"{outer}.") for outer in lists):
                continue
            if all(any(is_attention(n, m) for n, m in b.named_modules() if n) for b in module):
                lists.append(path)
                for index, block in enumerate(module):
                    found += find_block(f"{path}.{index}", block, depth, path)
                    depth += 1
        return tuple(found)

    def find_cut(self, network: nn.Module, branch: int) -> Place:
        """Refused: this finder knows no UNets."""
        raise CapabilityError(
            "cuts are found in the UNets of diffusers pipelines; attach to a pipeline for them"
        )


def is_attention(name: str, module: nn.Module) -> bool:
    """Whether a module is an attention, by the name of its class."""
    return (
        ATTENTION.search(type(module).__name__) is not None and "Block" not in type(module).__name__
    )


def find_block(path: str, block: nn.Module, depth: int, stack: str) -> list[Place]:
    """A block, and the attention and MLPs among its children."""
    found = [Place(path, "block", depth, stack)]
    for name, child in block.named_children():
        kind: Kind | None = None
        if is_attention(name, child):
            kind = "cross" if CROSS.search(name) else "attention"
        elif MLP_NAME.match(name) or MLP_CLASS.search(type(child).__name__):
            kind = "mlp"
        if kind is not None:
            found.append(Place(f"{path}.{name}", kind, depth, stack))
    return found
