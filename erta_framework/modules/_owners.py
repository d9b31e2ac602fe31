"""Which policy owns which places of a network: selections resolved, conflicts refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erta_framework.errors import CapabilityError, ConflictError
from erta_framework.modules._actions import Action
from erta_framework.modules._finder import Finder
from erta_framework.modules._parts import Parts
from erta_framework.modules._places import Place
from erta_framework.modules._select import Selection, select_places
from erta_framework.session import Step

Assign = Callable[[Callable[[], str], Step, Parts], Mapping[Place, Action] | None]
"""Asks a policy for its plan; the first argument says where, for messages."""


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """A policy with the places that it owns in one network.

    Attributes:
        name: The policy, for messages.
        places: Its places, in the order of execution.
        depth: How many outputs of each it keeps.
        assign: Asks it for its plan.
        keeps_inputs: Whether it keeps an input beside each output.
    """

    name: str
    places: tuple[Place, ...]
    depth: int
    assign: Assign
    keeps_inputs: bool = False


def resolve_places(
    name: str, network: Any, selections: Sequence[Selection], finder: Finder, owner: str
) -> tuple[Place, ...]:
    """The places of one policy in a network.

    Args:
        name: Name of the network, for messages.
        network: The network.
        selections: What the policy selects.
        finder: Finds places.
        owner: The policy, for messages.

    Raises:
        CapabilityError: A selection has no place here.
    """
    found: dict[str, Place] = {}
    for selection in selections:
        try:
            chosen = select_places(network, selection, finder)
        except CapabilityError as error:
            raise CapabilityError(
                f"{owner} cannot have {selection} in {name} ({type(network).__name__}): {error}"
            ) from error
        found.update({place.path: place for place in chosen if place.path not in found})
    return tuple(found.values())


def check_owners(name: str, owners: Sequence[Owner]) -> None:
    """Refuse two owners of one output, and a block within a span or cut of another place.

    Raises:
        ConflictError: Names both policies and the place.
    """
    outputs: dict[str, tuple[Owner, Place]] = {}
    inside: dict[str, tuple[Owner, Place]] = {}
    for owner in owners:
        for place in owner.places:
            whole = place.modules if place.kind in ("span", "cut") else place.modules[-1:]
            for path in whole:
                for taken in (outputs.get(path), inside.get(path)):
                    # within one cut or span, and for two cuts, sharing a member is an overlap
                    if taken is not None and taken[1] is not place:
                        raise ConflictError(
                            f"{path} of {name} has two owners: {taken[0].name} (as {taken[1]}) and "
                            f"{owner.name} (as {place}); let one of them select other places"
                        )
            outputs[place.modules[-1]] = (owner, place)
            inside.update({path: (owner, place) for path in whole})
