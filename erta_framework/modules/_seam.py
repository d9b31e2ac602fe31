"""`ModuleSeam`: the gates on the places that policies own in some networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from torch import nn

from erta_framework.errors import ProtocolError
from erta_framework.modules._gates import Gates
from erta_framework.modules._memory import parse_bytes
from erta_framework.modules._owners import Owner

if TYPE_CHECKING:
    from types import TracebackType


class ModuleSeam:
    """The gates on the places that policies own in some networks.

    A context manager: the gates stand within its `with` block. They are at rest, and every module
    runs, but for the calls that a `ModuleRun` opens.

    Args:
        networks: The networks by name.
        owners: The policies with their places, for each network.
        memory: The most bytes that the places of a request may keep, such as `"2GiB"`; None sets
            no bound.

    Raises:
        InputError: `memory` is no size.

    Example:
        >>> with ModuleSeam({"model": network}, {"model": owners}) as seam:  # doctest: +SKIP
        ...     run = ModuleRun(seam, session)
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        owners: Mapping[str, Sequence[Owner]],
        memory: str | int | None = None,
    ) -> None:
        self.owners = owners
        self.memory = None if memory is None else parse_bytes(memory)
        self.gates = {n: Gates(m, n) for n, m in networks.items() if owners.get(n)}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.remove()
        except ProtocolError as intruded:
            if error is None:
                raise
            error.add_note(str(intruded))

    def install(self) -> None:
        """Put up every gate, or none.

        Raises:
            ConflictError: A module is gated already.
            CapabilityError: A module lies inside a compiled one.
        """
        try:
            for name, gates in self.gates.items():
                gates.install(p for o in self.owners[name] for s in o.places for p in s.modules)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take every gate off; safe to call twice.

        Raises:
            ProtocolError: Somebody wrapped a gate in between; the others are off.
        """
        problems: list[str] = []
        for gates in self.gates.values():
            try:
                gates.remove()
            except ProtocolError as error:
                problems.append(str(error))
        if problems:
            raise ProtocolError("; ".join(problems))
