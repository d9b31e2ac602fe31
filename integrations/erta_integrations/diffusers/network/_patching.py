"""Replaces methods of single instances for a while, and restores exactly what was there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

MISSING = object()
OnCopy = Callable[[Any, Callable[..., Any]], Any]
"""Given a deep copy of an instance and its own method: what the copy is to have instead."""


class Patch:
    """Replaces a bound method of one instance.

    It has the signature and name of the original, because pipelines inspect them. A deep copy of
    the instance gets its own original method, or what `on_copy` makes of that, so it is never
    driven by the patches of the instance that it was copied from. What is pickled or saved with
    `torch.save` gets the original method.
    """

    def __init__(
        self,
        owner: object,
        name: str,
        replacement: Callable[..., Any],
        on_copy: OnCopy | None = None,
        original: Callable[..., Any] | None = None,
    ) -> None:
        self.original: Callable[..., Any] = getattr(owner, name) if original is None else original
        self.owner, self.name, self.on_copy = owner, name, on_copy
        self.replacement: Callable[..., Any] | None = replacement
        self.__wrapped__ = self.original
        self.__name__ = name
        self.__doc__ = self.original.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.replacement is None:
            return self.original(*args, **kwargs)
        return self.replacement(self.original, args, kwargs)

    def retire(self) -> None:
        """Pass every call on from now on; hooks on top of this patch wrap the original instead."""
        self.replacement = None
        for holder, name in iter_hooks(self.owner):
            if getattr(holder, name, None) is self:
                setattr(holder, name, self.original)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self.owner) not in memo:
            return self
        original = copy.deepcopy(self.original, memo)
        if self.on_copy is None or self.replacement is None:
            return original
        return self.on_copy(memo[id(self.owner)], original)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # names from the standard library only, so that it loads where this package is missing
        if getattr(self.original, "__self__", None) is self.owner:
            return getattr, (self.owner, self.name)
        return cast, (object, self.original)


class PatchSet:
    """Patches on several instances; `undo` restores the same attribute objects, newest first."""

    def __init__(self) -> None:
        self._done: list[tuple[object, Patch]] = []

    def apply(
        self,
        owner: object,
        name: str,
        replacement: Callable[..., Any],
        on_copy: OnCopy | None = None,
    ) -> Patch:
        """Replace `owner.name` on this instance by `replacement(original, args, kwargs)`.

        `on_copy` says what a deep copy of the instance gets; by default its own method.
        """
        patch = Patch(owner, name, replacement, on_copy)
        self._done.append((vars(owner).get(name, MISSING), patch))
        vars(owner)[name] = patch
        return patch

    def refresh(self) -> None:
        """Patch again what somebody else replaced in the meantime.

        `enable_model_cpu_offload` removes every hook and installs new ones after each request.
        Group offloading with streams removes hooks at the end of the first network call.
        """
        for place, (_, patch) in enumerate(self._done):
            if vars(patch.owner).get(patch.name) is patch:
                continue
            owner, name, replacement = patch.owner, patch.name, patch.replacement
            if replacement is None:
                continue
            patch.retire()
            before = vars(owner).get(name, MISSING)
            self._done[place] = (before, Patch(owner, name, replacement, patch.on_copy))
            vars(owner)[name] = self._done[place][1]

    def undo(self) -> None:
        """Restore everything; hooks that others put on top stay, and wrap the original.

        A patch is forgotten only after it was restored, and restoring twice changes nothing: after
        an interrupt at any place, a second call finishes.
        """
        while self._done:
            before, patch = self._done[-1]
            patch.retire()
            attributes = vars(patch.owner)
            if attributes.get(patch.name) is patch:
                if before is MISSING:
                    del attributes[patch.name]
                else:
                    attributes[patch.name] = before
            self._done.pop()


def restore(owner: Any, name: str) -> None:
    """Give a deep copy of a patched instance its own method back, if it has a patch of its own."""
    patch = vars(owner).get(name)
    if isinstance(patch, Patch) and patch.owner is owner:
        patch.retire()
        vars(owner)[name] = patch.original


def iter_hooks(owner: object) -> Iterator[tuple[object, str]]:
    """The places where hooks on `owner.forward` keep what they wrap: accelerate, then diffusers."""
    if "_old_forward" in vars(owner):
        yield owner, "_old_forward"
    for reference in getattr(vars(owner).get("_diffusers_hook"), "_fn_refs", ()):
        yield reference, "forward"
        yield reference, "original_forward"


def is_patched(owner: object, name: str) -> bool:
    """Whether one of our patches answers `owner.name`, also beneath hooks on top of it."""
    held = [vars(owner).get(name)]
    if name == "forward":
        held += [getattr(holder, attribute, None) for holder, attribute in iter_hooks(owner)]
    return any(isinstance(found, Patch) and found.replacement is not None for found in held)
