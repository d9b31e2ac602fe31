"""Faces of packages whose names are imported when they are first asked for.

`import erta_framework` and `erta --version` would otherwise wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class DeferredFace(ModuleType):
    """A package whose `__all__` lists names of modules that are not imported yet."""

    _homes: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        if name in vars(self).get("__all__", ()):
            for home in vars(self)["_homes"]:
                module = import_module(home)
                if hasattr(module, name):
                    super().__setattr__(name, getattr(module, name))
                    return getattr(module, name)
        if not name.startswith("_"):
            path = f"{self.__name__}.{name}"
            try:
                return import_module(path)
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # importing the package `attach` would hide the function of that name
        if not (isinstance(value, ModuleType) and name in vars(self).get("__all__", ())):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})


def defer_face(package: str, *homes: str) -> None:
    """Import the names of a package's `__all__` when they are asked for.

    Args:
        package: Name of the package, which is being imported; its `__all__` is set already.
        homes: Modules that hold the names, in the order in which they are looked into.

    Example:
        >>> import erta_framework
        >>> erta_framework.CFG.__name__
        'CFG'
    """
    face = sys.modules[package]
    vars(face)["_homes"] = homes
    face.__class__ = DeferredFace
