"""Per-policy state of one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from erta_framework.errors import PolicyError

S = TypeVar("S")


class StateStore:
    """What policies remember during one request, made on first use and dropped with the session.

    A policy is a key by identity, and the store holds a reference to it. A temporary object would
    otherwise lend its address, and so its state, to the next one.

    Args:
        policies: The policies that may keep state: those of an engine and those that these hold.
    """

    __slots__ = ("_owners", "_states")

    def __init__(self, policies: Iterable[object] = ()) -> None:
        self._owners = {id(policy): policy for policy in policies}
        self._states: dict[tuple[int, object], object] = {}

    def get(self, policy: object, key: object, factory: Callable[[], S]) -> S:
        """The state of `policy` under `key`; `factory` makes it the first time.

        Raises:
            PolicyError: `policy` is not one of the engine's, nor held by one in a field.
        """
        slot = (id(policy), key)
        found = self._states.get(slot, self)
        if found is not self:
            return found  # type: ignore[return-value]
        if id(policy) not in self._owners:
            raise PolicyError(
                f"state_of was asked for the state of {policy!r}, which is no policy of this "
                "engine; pass self, or a policy that one of the listed ones holds in a field"
            )
        made = self._states[slot] = factory()
        return made

    def adopt(self, policy: object) -> None:
        """Let a policy keep state that another one made for this request, and hold it."""
        self._owners[id(policy)] = policy

    def clear(self) -> None:
        """Forget everything."""
        self._states.clear()

    def __len__(self) -> int:
        return len(self._states)
