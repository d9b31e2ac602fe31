"""Instance attributes set for a while and put back exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

MISSING = object()


class Patch:
    """A callable that stands in for a bound method of one instance.

    It carries the signature and name of the original, because pipelines inspect them. A deep copy
    of the instance gets the original method of the copy, so a copied scheduler is never driven by
    the patches of the one it was copied from.
    """

    def __init__(self, owner: object, name: str, replacement: Callable[..., Any]) -> None:
        self.original: Callable[..., Any] = getattr(owner, name)
        self.owner, self.name = owner, name
        self.replacement: Callable[..., Any] | None = replacement
        self.__wrapped__ = self.original
        self.__name__ = name
        self.__doc__ = self.original.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.replacement is None:
            return self.original(*args, **kwargs)
        return self.replacement(self.original, *args, **kwargs)

    def retire(self) -> None:
        """Pass every call on from now on; a hook that somebody put on top may still hold this."""
        self.replacement = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self if id(self.owner) not in memo else copy.deepcopy(self.original, memo)


class PatchSet:
    """Patches on several instances; `undo` restores the very same attributes, newest first."""

    def __init__(self) -> None:
        self._done: list[tuple[object, Patch]] = []

    def apply(self, owner: object, name: str, replacement: Callable[..., Any]) -> Patch:
        """Replace `owner.name` on this instance; `replacement(original, *args, **kwargs)`."""
        patch = Patch(owner, name, replacement)
        self._done.append((vars(owner).get(name, MISSING), patch))
        vars(owner)[name] = patch
        return patch

    def refresh(self) -> None:
        """Patch again what was replaced meanwhile.

        `enable_model_cpu_offload` takes every hook off and installs new ones after each request.
        """
        for place, (_, patch) in enumerate(self._done):
            owner, name, replacement = patch.owner, patch.name, patch.replacement
            if vars(owner).get(name) is patch or replacement is None:
                continue
            patch.retire()
            before = vars(owner).get(name, MISSING)
            self._done[place] = (before, Patch(owner, name, replacement))
            vars(owner)[name] = self._done[place][1]

    def undo(self) -> None:
        """Restore everything; what somebody else put on top stays, and finds the original."""
        while self._done:
            before, patch = self._done.pop()
            patch.retire()
            attributes = vars(patch.owner)
            if attributes.get(patch.name) is not patch:
                continue
            if before is MISSING:
                del attributes[patch.name]
            else:
                attributes[patch.name] = before


def patched(owner: object, name: str) -> bool:
    """Whether `owner.name` is one of our patches."""
    return isinstance(vars(owner).get(name), Patch)
