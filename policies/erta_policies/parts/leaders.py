"""Which branch of a step is asked first, for rules in which that one decides for all."""

from __future__ import annotations

from erta_framework import Call, Step


class Leaders:
    """The branch that each network was asked for first in the newest step; known by name.

    Example:
        >>> Leaders().leads(step, call)  # doctest: +SKIP
        True
    """

    __slots__ = ("_first",)

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, str]] = {}

    def leads(self, step: Step, call: Call) -> bool:
        """Whether this call is of the branch that its network was asked for first in this step."""
        index, branch = self._first.get(call.model, (-1, ""))
        if index == step.index:
            return branch == call.branch
        self._first[call.model] = step.index, call.branch
        return True
