"""Counts the file operations of this process below a folder, and can end a worker at one."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

KINDS = {
    "os.symlink": "create",
    "os.link": "create",
    "os.mkdir": "create",
    "os.replace": "rename",
    "os.listdir": "list",
    "os.scandir": "list",
    "os.stat": "look",
    "os.lstat": "look",
    "os.readlink": "look",
    "os.utime": "stamp",
    "os.fsync": "sync",
    "os.unlink": "remove",
    "os.open": "open",
    "io.open": "open",
}
"""The kind of operation that each function is."""
OF_DESCRIPTOR = "os.fsync"
TARGET = {"os.symlink": 1, "os.link": 1}
"""The place of the path among the arguments, where it is not the first."""


class Killed(BaseException):
    """A simulated SIGKILL; not an `Exception`, so that no handler of the job catches it."""


class FileCalls(contextlib.AbstractContextManager["FileCalls"]):
    """Counts file operations below a folder while it is entered.

    Python calls of `os` and `io.open` are seen, which is all that a job makes for its claims,
    pulses, manifests and outputs; reading and writing an open file is not counted.

    Args:
        folder: Where to count.
        second: Gives the second to count an operation in.

    Attributes:
        counts: Operations by kind.
        seconds: Operations by second.

    Example:
        >>> with FileCalls(Path("job"), lambda: 0) as calls:
        ...     os.path.exists("job/none")
        False
        >>> calls.counts
        Counter({'look': 1})
    """

    def __init__(self, folder: Path, second: Callable[[], float]) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[int] = Counter()
        self._folder, self._second = str(folder), second
        self._left: int | None = None
        self._seeing = True
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> FileCalls:
        modules = {"os": os, "io": io}
        for name, kind in KINDS.items():
            module, _, function = name.partition(".")
            original = getattr(modules[module], function)
            self._patches.enter_context(
                mock.patch.object(modules[module], function, self._seen(name, kind, original))
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    @contextlib.contextmanager
    def kill_after(self, operations: int) -> Iterator[None]:
        """Let the code inside make so many operations; every further one raises `Killed`."""
        self._left = operations
        try:
            yield
        finally:
            self._left = None

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Count nothing inside; for the simulation's own checks."""
        self._seeing = False
        try:
            yield
        finally:
            self._seeing = True

    def _seen(self, name: str, kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        place = TARGET.get(name, 0)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._seeing and (name == OF_DESCRIPTOR or self._inside(args[place])):
                if self._left is not None:
                    if self._left == 0:
                        raise Killed(name)
                    self._left -= 1
                self.counts[kind] += 1
                self.seconds[int(self._second())] += 1
            return original(*args, **kwargs)

        return call

    def _inside(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._folder)
