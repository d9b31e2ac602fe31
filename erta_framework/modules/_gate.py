"""`Gate`: what stands in front of a selected module, and lets a policy's plan answer for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from threading import get_ident
from types import MethodType
from typing import Any

from torch import nn

GATE = "_erta_gate"

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

    def set(self, handler: Handler, thread: int) -> None:
        """Answer the visits of a thread; one of another thread is not of this network call."""
        self.handler, self.thread = handler, thread

    def rest(self) -> None:
        """Let the module run."""
        self.handler = None

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
        gate: Gate = module.__dict__[GATE]  # faster than `vars`
        if gate.handler is None or gate.thread != get_ident():
            return original(module, *args, **kwargs)
        return gate.handler(gate.run, args, kwargs)

    return forward


@functools.lru_cache(maxsize=256)
def get_shared_forward(original: Run) -> Run:
    """The gated `forward` around that of a class, made once: its instances share it."""
    return make_forward(original)
