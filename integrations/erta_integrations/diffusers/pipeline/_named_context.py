"""`NamedContext`: notes the branch that a pipeline names."""

from __future__ import annotations

from typing import Any


class NamedContext:
    """diffusers' own `cache_context`, which also notes the branch that it names.

    A class, because a generator is slower, and this is entered at every network call.
    """

    __slots__ = ("contexts", "inner", "name")

    def __init__(self, contexts: list[str], name: str, inner: Any) -> None:
        self.contexts, self.name, self.inner = contexts, name, inner

    def __enter__(self) -> Any:
        entered = self.inner.__enter__()
        self.contexts.append(self.name)
        return entered

    def __exit__(self, *raised: Any) -> Any:
        self.contexts.pop()
        return self.inner.__exit__(*raised)
