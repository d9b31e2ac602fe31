"""`GraphGate`: the gate of a module that runs inside a compiled one."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.modules._gate import GATE, Handler, Run

AHEAD = frozenset({"hand_out", "reuse", "skip"})
"""Methods that answer without the inputs of the visit, so before the network runs."""
AFTER = frozenset({"run", "keep"})
"""Methods that need only what the module returned, so after the network ran."""


class GraphGate:
    """The state of one gated module inside a compiled one.

    A graph cannot ask a handler. So what answers without the inputs is made before the network
    call, and what reads the output gets it afterwards. In between, the graph sees two things:
    whether the module runs, which it guards on, and the tensors that stand in for it, which are
    inputs. That makes two graphs, one in which the module runs and one in which it does not.

    Attributes:
        stands_in: Whether `made` is returned and the module does not run.
        made: What is returned then.
        fresh: What the module returned; None if it did not run.
        handler: Reads that afterwards.
    """

    __slots__ = ("fresh", "handler", "made", "stands_in")

    def __init__(self) -> None:
        self.stands_in = False
        self.made: Any = None
        self.fresh: Any = None
        self.handler: Handler | None = None

    def set(self, handler: Handler, thread: int) -> None:
        """Answer the visit of the next network call, on whatever thread: a graph has none.

        Raises:
            CapabilityError: The handler needs the inputs of the visit.
        """
        name = getattr(handler, "__name__", "")
        if name in AHEAD and not needs_inputs(handler):
            self.made, self.stands_in = handler(refuse_to_run, (), {}), True
        elif name in AFTER and not needs_inputs(handler):
            self.handler, self.stands_in = handler, False
        else:
            owner: Any = getattr(handler, "__self__", None)
            raise CapabilityError(
                f"{getattr(owner, 'place', None) or getattr(owner, 'path', owner)} lies inside a "
                "compiled module, where its output can be kept, reused or skipped, but nothing can "
                "be asked, run in part or kept as a residual; select whole blocks, or do not "
                "compile"
            )

    def settle(self) -> None:
        """Hand on what the module returned, now that the network has run."""
        handler, fresh = self.handler, self.fresh
        if handler is not None and fresh is not None:
            handler(lambda *_, **__: fresh, (), {})
        self.handler, self.fresh = None, None

    def rest(self) -> None:
        """Let the module run, and hold nothing."""
        self.stands_in, self.made, self.fresh, self.handler = False, None, None, None

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphGate:
        """A copied network is driven by nobody: its gates are at rest."""
        return GraphGate()


def needs_inputs(handler: Handler) -> bool:
    """Whether a place reads what goes into it: it keeps or reuses a residual."""
    owner = getattr(handler, "__self__", None)
    action = getattr(owner, "action", None)
    return getattr(action, "of", "output") != "output"


def refuse_to_run(*_: Any, **__: Any) -> Any:
    """What stands for the module while its output is made without it."""
    raise AssertionError("a reused module does not run")


@functools.lru_cache(maxsize=256)
def get_graph_forward(original: Run) -> Run:
    """The gated `forward` around that of a class, made once: all of its instances share graphs."""

    @functools.wraps(original)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gate = getattr(module, GATE)
        if gate.stands_in:
            return gate.made
        output = original(module, *args, **kwargs)
        gate.fresh = output
        return output

    return forward


def find_compiled(network: nn.Module, path: str) -> str | None:
    """The path of the compiled module around a module; `""` is the network, None if there is none.

    Example:
        >>> find_compiled(nn.Sequential(nn.Linear(1, 1)), "0") is None
        True
    """
    parts = path.split(".")
    for length in range(len(parts)):
        outer = ".".join(parts[:length])
        if is_compiled(network.get_submodule(outer)):
            return outer
    return None


def is_compiled(module: nn.Module) -> bool:
    """Whether a module runs as a graph."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
