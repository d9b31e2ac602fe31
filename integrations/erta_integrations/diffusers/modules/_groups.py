"""Places of one kind and name as one line: how many, how deep, what they cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.modules import (
    OUTSIDE,
    Measurement,
    Place,
    count_output_bytes,
    find_branches,
    find_cut,
    find_places,
    measure,
    run_eagerly,
)
from erta_integrations.diffusers.network import PatchSet, find_networks

NUMBER = re.compile(r"(?<=[.:])\d+(?=[.]|$)")


@dataclass(frozen=True, slots=True)
class PlaceGroup:
    """Places of one network whose names differ in numbers alone.

    Attributes:
        network: Name of the network within the pipeline.
        kind: What they are, such as `attention`.
        name: Their name, such as `blocks.*.attn1`.
        count: How many there are.
        depth: Depth of the first and of the last; -1 outside of the trunk.
        share: Their share of the network's FLOPs. Shares of places inside each other overlap.
        kept_bytes: Bytes that one kept output of each holds, for one network call.
    """

    network: str
    kind: str
    name: str
    count: int
    depth: tuple[int, int]
    share: float
    kept_bytes: int

    def as_record(self) -> dict[str, Any]:
        """The group as JSON holds it."""
        return asdict(self)


def inspect_places(
    pipe: Any, networks: Sequence[str] | None = None, **request: Any
) -> list[PlaceGroup]:
    """Find the places of a pipeline's networks, and measure what they cost in one request.

    The request runs as it is; the costs are those of each network's first call in it. Costs in
    FLOPs depend on shapes alone, so one step is enough where every network runs in it.

    Args:
        pipe: A diffusers pipeline.
        networks: Names of components, as in `attach`.
        request: Arguments of the pipeline, such as `prompt`, `height` and `num_inference_steps`.

    Raises:
        CapabilityError: A network has no places, or did not run in this request.

    Example:
        >>> for each in inspect_places(pipe, prompt="a cat", num_inference_steps=1):
        ...     print(each.kind, each.name, each.count, f"{each.share:.0%}")  # doctest: +SKIP
        block blocks.* 30 98%
        attention blocks.*.attn1 30 41%
    """
    found = find_networks(pipe, networks)
    places = {name: list_places(network) for name, network in found.items()}  # refuses early
    costs: dict[str, Measurement] = {}
    patches = PatchSet()

    def watch(name: str, network: nn.Module) -> None:
        def answer(original: Any, args: Any, kwargs: Any) -> Any:
            if name in costs:
                return original(*args, **kwargs)
            outputs: list[Any] = []
            costs[name] = measure(network, lambda: outputs.append(original(*args, **kwargs)))
            return outputs[0]

        patches.apply(network, "forward", answer)

    try:
        for name, network in found.items():
            watch(name, getattr(network, "_orig_mod", network))
        with run_eagerly():
            pipe(**request)
    finally:
        patches.undo()
    absent = [name for name in found if name not in costs]
    if absent:
        raise CapabilityError(
            f"{', '.join(absent)} of {type(pipe).__name__} did not run in this request; ask for "
            "more steps, or name the others with networks=[...]"
        )
    return [group for name in found for group in group_places(name, places[name], costs[name])]


def list_places(network: nn.Module) -> list[Place]:
    """The places of a network, then the cuts of a UNet.

    Raises:
        CapabilityError: It has none.
    """
    return [*find_places(network), *(find_cut(network, b) for b in find_branches(network))]


def group_places(network: str, places: Sequence[Place], costs: Measurement) -> list[PlaceGroup]:
    """Put places whose names differ in numbers alone into one group, but not cuts.

    Args:
        network: Name of the network.
        places: All of it.
        costs: Of one call of it.
    """
    groups: dict[tuple[str, str], list[Place]] = {}
    for place in places:
        name = place.path if place.kind == "cut" else NUMBER.sub("*", place.path)
        groups.setdefault((place.kind, name), []).append(place)
    return [
        PlaceGroup(
            network=network,
            kind=kind,
            name=name,
            count=len(members),
            depth=(min(p.depth for p in members), max(p.depth for p in members)),
            share=costs.count_idle(m for p in members for m in p.modules) / costs.total,
            kept_bytes=sum(count_output_bytes(p, costs) for p in members),
        )
        for (kind, name), members in groups.items()
    ]


def describe_places(network: nn.Module) -> str:
    """The places of a network in one line, such as `30 block, 30 attention, 30 mlp`.

    Raises:
        CapabilityError: It has none.
    """
    kinds: dict[str, int] = {}
    for place in list_places(network):
        if place.depth != OUTSIDE:
            kinds[place.kind] = kinds.get(place.kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())
