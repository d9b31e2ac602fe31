"""Gates: what stands in front of selected modules, and lets a policy's plan answer for them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError, ConflictError, ProtocolError

GATE = "_erta_gate"
MISSING = object()

Run = Callable[..., Any]
Handler = Callable[[Run, tuple[Any, ...], Mapping[str, Any]], Any]
"""Answers one visit of a module, from what runs it, `args` and `kwargs`."""


class Gate:
    """The state of one gated module.

    Attributes:
        handler: Answers the visits; None while the gate is at rest and the module runs.
        thread: The thread of the network call that is answered.
        run: Runs the module as if there were no gate.
    """

    __slots__ = ("handler", "run", "thread")

    def __init__(self, run: Run) -> None:
        self.handler: Handler | None = None
        self.thread = 0
        self.run = run

    def set(self, handler: Handler) -> None:
        """Answer the visits of this thread; one of another thread is not of this network call."""
        self.handler, self.thread = handler, threading.get_ident()

    def __deepcopy__(self, memo: dict[int, Any]) -> Gate:
        """A copied network is driven by nobody: its gates are at rest."""
        bound = self.run
        twin = memo.get(id(getattr(bound, "__self__", None)))
        if twin is None:
            return Gate(bound)
        return Gate(MethodType(bound.__func__, twin))  # type: ignore[attr-defined]


def make_forward(original: Run) -> Run:
    """A `forward` with a gate around `original`, a function of the module and its arguments."""

    @functools.wraps(original)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gate: Gate = vars(module)[GATE]
        if gate.handler is None or gate.thread != threading.get_ident():
            return original(module, *args, **kwargs)
        return gate.handler(gate.run, args, kwargs)

    return forward


@functools.lru_cache(maxsize=256)
def get_shared_forward(original: Run) -> Run:
    """The gated `forward` around that of a class, made once: its instances share it."""
    return make_forward(original)


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
        self._gates: dict[str, Gate] = {}

    def __getitem__(self, path: str) -> Gate:
        return self._gates[path]

    def module(self, path: str) -> nn.Module:
        """A gated module."""
        return self._installed[path][0]

    def install(self, paths: Iterable[str]) -> None:
        """Put a gate in front of each module; all of them, or none.

        Raises:
            ConflictError: A module is gated already.
            CapabilityError: There is no such module, or it lies inside a compiled one.
        """
        try:
            for path in dict.fromkeys(paths):
                self._install(path)
        except BaseException:
            self.remove()
            raise

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
        self._refuse_inside_compiled(path)
        own = getattr(module, "_compiled_call_impl", None)
        place = "forward" if own is None else "_compiled_call_impl"
        before = vars(module).get(place, MISSING)
        if before is MISSING:
            gated, run = (
                get_shared_forward(type(module).forward),
                MethodType(type(module).forward, module),
            )
        else:  # hooks of others on this instance, or its compiled call, stay beneath the gate
            run = before
            gated = make_forward(lambda module, *args, **kwargs: run(*args, **kwargs))
        forward = MethodType(gated, module)
        self._installed[path] = (module, place, before, forward)
        self._gates[path] = vars(module)[GATE] = Gate(run)
        vars(module)[place] = forward

    def _refuse_inside_compiled(self, path: str) -> None:
        parts = path.split(".")
        for length in range(len(parts)):
            outer = self.network.get_submodule(".".join(parts[:length]))
            if hasattr(outer, "_orig_mod") or getattr(outer, "_compiled_call_impl", None):
                where = ".".join(parts[:length]) or self.name
                raise CapabilityError(
                    f"{path} lies inside {where} ({type(outer).__name__}), which is compiled: a "
                    "graph has no modules to leave out; select what is compiled as a whole, such "
                    "as blocks after compile_repeated_blocks(), or do not compile"
                )

    def refuse_intruders(self) -> None:
        """Refuse modules whose `forward` somebody replaced after the gates were installed.

        Raises:
            ProtocolError: Names the first one and what stands there.
        """
        for path, (module, place, _, forward) in self._installed.items():
            if vars(module).get(place) is not forward:
                raise ProtocolError(self._describe_intruder(path, vars(module).get(place)))

    def _describe_intruder(self, path: str, found: object) -> str:
        return (
            f"{path}.forward of {self.name} ({type(self.network).__name__}) was replaced by "
            f"{found!r} after the gates of the policies were installed; put hooks on first, and "
            "remove them last"
        )

    def rest(self) -> None:
        """Let every module run."""
        for gate in self._gates.values():
            gate.handler = None

    def remove(self) -> None:
        """Take every gate off, newest first; safe to call twice.

        Raises:
            ProtocolError: Somebody wrapped a gate in between. All the others are off then, and what
                stands there now is told that its gate is at rest.
        """
        intruders: list[str] = []
        while self._installed:
            path, (module, place, before, forward) = self._installed.popitem()
            gate, attributes = self._gates.pop(path), vars(module)
            gate.handler = None
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
