"""Who and where, in words, for the messages of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erta_framework.session._step import SessionInfo

if TYPE_CHECKING:
    from erta_framework.plugins import Engine


class Where:
    """Describes the step and the policies at fault, for the text of errors.

    Attributes:
        index: The step that is open or comes next; None before the first.
    """

    __slots__ = ("engine", "index", "info")

    def __init__(self, engine: Engine, info: SessionInfo) -> None:
        self.engine, self.info = engine, info
        self.index: int | None = None

    def __call__(self) -> str:
        """`at step 3 of request 'r'`."""
        request = f"of request {self.info.request_id!r}"
        return request if self.index is None else f"at step {self.index} {request}"

    def owner(self, hook: str) -> str:
        """The policies that implement a hook."""
        return " / ".join(repr(policy) for policy in self.engine.implementers(hook)) or "the driver"

    def decider(self) -> str:
        """The policies that decide, and the step."""
        return f"{self.owner('decide')} {self()}"
