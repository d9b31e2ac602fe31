"""`Gates`: the gates on some modules of one network, for as long as they are installed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError, ConflictError, ProtocolError
from erta_framework.modules._gate import GATE, Gate, Handler, get_shared_forward, make_forward
from erta_framework.modules._graph_gate import (
    GraphGate,
    find_compiled,
    get_graph_forward,
)

MISSING = object()
COMPILED = "_compiled_call_impl"

Answering = tuple[Gate | GraphGate, Handler]
"""A gate with what answers its visits."""


class Gates:
    """The gates on some modules of one network, for as long as they are installed.

    Args:
        network: The network.
        name: Its name, for messages.

    Attributes:
        turn: Held by the network call that is answered.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network, self.name = network, name
        self.turn = threading.RLock()
        self._installed: dict[str, tuple[nn.Module, str, object, object]] = {}
        self._gates: dict[str, Gate | GraphGate] = {}
        self._graphs: list[GraphGate] = []
        self._eager: dict[str, nn.Module] = {}
        # what is looked at in every network call: attributes of modules, and what must stand there
        self._around: list[dict[str, Any]] = []
        self._standing: list[tuple[dict[str, Any], str, object]] = []

    def module(self, path: str) -> nn.Module:
        """A gated module."""
        return self._installed[path][0]

    def install(self, paths: Iterable[str]) -> None:
        """Put a gate in front of each module; all of them, or none.

        Raises:
            ConflictError: A module is gated already.
            CapabilityError: There is no such module; or it lies inside a compiled one, and somebody
                else put something on it.
        """
        try:
            for path in dict.fromkeys(paths):
                self._install(path)
        except BaseException:
            self.remove()
            raise
        self._graphs = [gate for gate in self._gates.values() if isinstance(gate, GraphGate)]
        self._around = [vars(module) for module in self._eager.values()]
        self._standing = [
            (vars(module), place, forward) for module, place, _, forward in self._installed.values()
        ]

    def _install(self, path: str) -> None:
        try:
            module = self.network.get_submodule(path)
        except AttributeError as error:
            raise CapabilityError(
                f"{self.name} ({type(self.network).__name__}) has no module {path!r}: {error}"
            ) from None
        if GATE in vars(module):
            raise ConflictError(
                f"{path} of {self.name} ({type(self.network).__name__}) is gated already, by "
                "another attachment or sampler, or under another path; leave that one first"
            )
        if find_compiled(self.network, path) is None:
            self._install_eager(path, module)
        else:
            self._install_in_graph(path, module)

    def _install_eager(self, path: str, module: nn.Module) -> None:
        own = getattr(module, COMPILED, None)
        place = "forward" if own is None else COMPILED
        before = vars(module).get(place, MISSING)
        if before is MISSING:
            forward = type(module).forward
            gated, run = get_shared_forward(forward), MethodType(forward, module)
        else:  # hooks of others on this instance, or its compiled call, stay beneath the gate
            run = before
            gated = make_forward(lambda module, *args, **kwargs: run(*args, **kwargs))
        self._put(path, module, place, before, MethodType(gated, module), Gate(run))
        parts = path.split(".")
        outer = {".".join(parts[:length]) for length in range(len(parts))}
        self._eager.update({each: self.network.get_submodule(each) for each in outer})
        if place == "forward":
            self._eager[path] = module

    def _install_in_graph(self, path: str, module: nn.Module) -> None:
        for place in ("forward", COMPILED):
            if vars(module).get(place) is not None:
                raise CapabilityError(
                    f"{path} of {self.name} ({type(module).__name__}) lies inside a compiled "
                    f"module and has a {place} of its own, {vars(module)[place]!r}; take that "
                    "off, or select whole blocks"
                )
        gated = get_graph_forward(type(module).forward)
        self._put(path, module, "forward", MISSING, MethodType(gated, module), GraphGate())

    def _put(
        self,
        path: str,
        module: nn.Module,
        place: str,
        before: object,
        forward: MethodType,
        gate: Gate | GraphGate,
    ) -> None:
        self._installed[path] = (module, place, before, forward)
        self._gates[path] = vars(module)[GATE] = gate
        vars(module)[place] = forward

    def check_visits(self, visits: Mapping[str, int]) -> None:
        """Refuse a module inside a graph that a network call visits several times.

        Args:
            visits: How often each module runs in a call, by path.

        Raises:
            CapabilityError: Names it; a graph gate holds one output.
        """
        for path, gate in self._gates.items():
            if isinstance(gate, GraphGate) and visits.get(path, 1) > 1:
                raise CapabilityError(
                    f"{path} of {self.name} lies inside a compiled module and runs {visits[path]} "
                    "times in a network call; select whole blocks, or do not compile"
                )

    def refuse_intruders(self) -> None:
        """Refuse modules whose `forward` somebody replaced after the gates were installed.

        Raises:
            ProtocolError: Names the first one and what stands there.
            CapabilityError: A module around a gate, or a gated one, was compiled since.
        """
        compiled = [own for own in self._around if COMPILED in own]
        moved = [own for own, place, forward in self._standing if own.get(place) is not forward]
        if compiled or moved:
            self._name_intruder()

    def _name_intruder(self) -> None:
        for path, module in self._eager.items():
            if vars(module).get(COMPILED) is not None:
                raise CapabilityError(
                    f"{path or self.name} of {self.name} ({type(module).__name__}) was compiled "
                    "after the gates of the policies were installed; compile first, then attach"
                )
        for path, (module, place, _, forward) in self._installed.items():
            if vars(module).get(place) is not forward:
                raise ProtocolError(self._describe_intruder(path, vars(module).get(place)))

    def _describe_intruder(self, path: str, found: object) -> str:
        return (
            f"{path}.forward of {self.name} ({type(self.network).__name__}) was replaced by "
            f"{found!r} after the gates of the policies were installed; put hooks on first, and "
            "remove them last"
        )

    def pair(self, handlers: Mapping[str, Handler]) -> list[Answering]:
        """The gates with what answers at each, by the path of the module."""
        return [(self._gates[path], handler) for path, handler in handlers.items()]

    def set(self, answering: Iterable[Answering]) -> None:
        """Answer the visits of this thread."""
        thread = threading.get_ident()
        for gate, handler in answering:
            gate.set(handler, thread)

    def rest(self) -> None:
        """Let every module run."""
        for gate in self._gates.values():
            gate.rest()

    def settle(self) -> None:
        """Hand on what the modules inside graphs returned, now that the network has run."""
        for gate in self._graphs:
            gate.settle()

    def remove(self) -> None:
        """Take every gate off, newest first; safe to call twice.

        Raises:
            ProtocolError: Somebody wrapped a gate in between. All the others are off then, and what
                stands there now is told that its gate is at rest.
        """
        intruders: list[str] = []
        self._eager.clear()
        self._graphs, self._around, self._standing = [], [], []
        while self._installed:
            path, (module, place, before, forward) = self._installed.popitem()
            gate, attributes = self._gates.pop(path), vars(module)
            gate.rest()
            if attributes.get(place) is not forward:
                intruders.append(self._describe_intruder(path, attributes.get(place)))
                continue  # whatever wraps the gate still calls it, and it lets the module run
            del attributes[GATE]
            if before is MISSING:
                del attributes[place]
            else:
                attributes[place] = before
        if intruders:
            raise ProtocolError("; ".join(intruders))
