"""`Select`, `Cut` and `Named`: which places of a network a policy owns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter

from torch import nn

from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules._finder import Finder
from erta_framework.modules._places import KINDS, Kind, Place

IN_BLOCKS = frozenset(("block", "attention", "cross", "mlp"))
SELECTABLE = tuple(kind for kind in KINDS if kind not in ("span", "cut", "named"))
OUTSIDE = -1
"""Depth of what is outside of the trunk, or has none."""
BOUND = re.compile(r"-?\d+|\d*\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """The places of some kinds, at some depths of a network.

    Attributes:
        kind: Kinds of places.
        depth: Which depths, as a slice: `"3:"` from the fourth block on, `"-7:"` the last seven,
            `"0.75:"` the last quarter, `"2"` one block.
        stack: A regular expression that the name of the list must match as a whole; by default the
            lists of the trunk.
        pick: Which of the places that were found, as a slice like `depth`: `"0"` the first one,
            `"1:"` the others.
        span: The selected blocks as one place, whose output is that of the last one.
        by_list: A span for each list of blocks, where the blocks stand in several.

    Raises:
        PolicyError: A kind or slice is none, or the span is not of blocks.

    Example:
        >>> Select(kind=("attention",), depth="1:")
        Select(kind=('attention',), depth='1:', stack='', pick=':', span=False, by_list=False)
    """

    kind: tuple[Kind, ...]
    depth: str = ":"
    stack: str = ""
    pick: str = ":"
    span: bool = False
    by_list: bool = False

    def __post_init__(self) -> None:
        for kind in self.kind:
            if kind not in SELECTABLE:
                raise PolicyError(f"{kind!r} is no kind to select; one of {', '.join(SELECTABLE)}")
        if not self.kind:
            raise PolicyError(f"Select has no kind; give some of {', '.join(SELECTABLE)}")
        if self.span and self.kind != ("block",):
            raise PolicyError(f"a span is made of blocks, not of {', '.join(self.kind)}")
        if self.by_list and not self.span:
            raise PolicyError("by_list makes a span for each list; set span=True as well")
        try:
            re.compile(self.stack)
        except re.error as error:
            raise PolicyError(f"stack {self.stack!r} is no regular expression: {error}") from None
        self.depths(1)
        slice_range(self.pick, 1, "pick")

    def depths(self, number: int) -> range:
        """The depths that are chosen of so many.

        Raises:
            PolicyError: The slice cannot be read.

        Example:
            >>> Select(kind=("block",), depth="0.75:").depths(8)
            range(6, 8)
        """
        return slice_range(self.depth, number, "depth")


def slice_range(text: str, number: int, name: str) -> range:
    """The part of `range(number)` that a slice names, in whole numbers or fractions.

    Args:
        text: The slice, such as `"3:"`.
        number: How many there are.
        name: The setting, for the message.

    Raises:
        PolicyError: The slice cannot be read.
    """
    bounds = text.split(":")
    if len(bounds) > 2 or not all(b == "" or BOUND.fullmatch(b) for b in bounds):
        raise PolicyError(
            f"{name} is {text!r}; write a slice of whole numbers or fractions, such as "
            "'3:', '-7:', '0.75:' or '2'"
        )
    places = [
        None if bound == "" else round(float(bound) * number) if "." in bound else int(bound)
        for bound in bounds
    ]
    if len(places) == 2:
        return range(number)[places[0] : places[1]]
    if places[0] is None:
        raise PolicyError(f"{name} is empty; write ':' for all")
    return range(number)[places[0] :][:1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The deep part of a UNet as one place: what lies below one of its skip connections.

    Where its output is reused, the network runs what lies above: the first layers down to the
    connection, and the last ones from there on up.

    Attributes:
        branch: Which connection, 0 for the first one after the input layer: the shallowest.
    """

    branch: int = 0

    def __post_init__(self) -> None:
        if self.branch < 0:
            raise PolicyError(f"branch of Cut is {self.branch}, it must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Any modules of a network, by their names.

    Attributes:
        path: A regular expression that the path of a module must match as a whole, such as
            `".*[.]attn2[.]to_[kv]"`.

    Raises:
        PolicyError: It is no regular expression.
    """

    path: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.path)
        except re.error as error:
            raise PolicyError(f"path {self.path!r} is no regular expression: {error}") from None


Selection = Select | Cut | Named


def select_places(network: nn.Module, selection: Selection, finder: Finder) -> tuple[Place, ...]:
    """The places of a network that a selection names, in the order of execution.

    Raises:
        CapabilityError: There is none; lists what there is.
    """
    if isinstance(selection, Cut):
        return (finder.find_cut(network, selection.branch),)
    if isinstance(selection, Named):
        return find_named(network, selection.path)
    places = finder.find_places(network)
    # stages of a UNet may lie behind its last block
    within = IN_BLOCKS if IN_BLOCKS.issuperset(selection.kind) else frozenset(KINDS)
    known = [place.depth for place in places if place.kind in within]
    depths = selection.depths(max(known, default=-1) + 1)
    matching = [
        place
        for place in places
        if place.kind in selection.kind and is_chosen(place, selection.stack, depths)
    ]
    chosen = slice_range(selection.pick, len(matching), "pick")
    if not chosen:
        what = (
            f"{len(matching)} match, and none of them is picked" if matching else "nothing matches"
        )
        raise CapabilityError(f"{what}; there are {describe_places(places)}")
    found = tuple(matching[k] for k in chosen)
    if not selection.span:
        return found
    if not selection.by_list:
        require_no_skips(found, places)
        return (join_span(found),)
    return tuple(join_span(tuple(run)) for _, run in groupby(found, attrgetter("stack")))


def find_named(network: nn.Module, path: str) -> tuple[Place, ...]:
    """The modules whose path matches a regular expression.

    Raises:
        CapabilityError: There is none; names the parts of the network.
    """
    names = [name for name, _ in network.named_modules() if name]
    found = tuple(Place(name, "named", OUTSIDE) for name in names if re.fullmatch(path, name))
    if not found:
        parts = ", ".join(name for name, _ in network.named_children())
        raise CapabilityError(f"nothing matches; its parts are {parts or 'none'}")
    return found


def is_chosen(place: Place, stack: str, depths: range) -> bool:
    """Whether the list and the depth of a place are those that are asked for."""
    if place.depth < 0:  # outside of the trunk: by name only, and there is no depth
        return bool(stack) and re.fullmatch(stack, place.stack) is not None
    if stack and re.fullmatch(stack, place.stack) is None:
        return False
    return place.depth in depths


def require_no_skips(blocks: Sequence[Place], places: Sequence[Place]) -> None:
    """Refuse a span over several lists of a UNet, whose skip connections leave from between them.

    Raises:
        CapabilityError: Names two of the lists.
    """
    first, *others = dict.fromkeys(block.stack for block in blocks)
    if others and any(place.kind in ("down", "up") for place in places):
        raise CapabilityError(
            f"a span of blocks from {first} to {others[-1]} holds skip connections of the UNet, "
            "which what is left out would feed; give by_list=True for a span in each list, or a Cut"
        )


def join_span(blocks: Sequence[Place]) -> Place:
    """Blocks that follow each other as one place.

    Raises:
        CapabilityError: They do not.
    """
    for one, other in pairwise(blocks):
        if other.depth != one.depth + 1:
            raise CapabilityError(
                f"{one} at depth {one.depth} and {other} at depth {other.depth} do not follow each "
                "other, so they are no span"
            )
    members = tuple(path for block in blocks for path in block.modules)
    name = f"{blocks[0].path}:{blocks[-1].path}"
    return Place(name, "span", blocks[0].depth, blocks[0].stack, members)


def describe_places(places: Sequence[Place]) -> str:
    """How many places of each kind and list there are."""
    counts = Counter((place.kind, place.stack) for place in places)
    named = [f"{n} {kind} in {stack or 'no list'}" for (kind, stack), n in counts.items()]
    return ", ".join(named) or "no places at all"
