"""Commands of installed distributions: listed from metadata, imported when they run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from erta_framework.text import escape_line

if TYPE_CHECKING:  # imported when a command is looked for, so that `--version` needs no torch
    from erta_framework.plugins import Catalogue, Entry


class DeferredCommand(TyperCommand):
    """A command that is imported when it runs or shows its own help.

    Args:
        name: Its name.
        load: Gives a Typer app, or a function that becomes a command.
        summary: One line for the list of commands.
    """

    def __init__(self, name: str, load: Callable[[], Any], summary: str) -> None:
        # the help of typer reads markup and prints what it is given
        super().__init__(escape_line(name), help=escape(escape_line(summary)))
        self._load = load

    def load(self) -> Any:
        """The command itself.

        Raises:
            RegistryError: It cannot be imported, or several distributions provide it.
        """
        from erta_framework.cli._options import expand_options

        loaded = self._load()
        if not isinstance(loaded, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(self.name)(expand_options(loaded) if callable(loaded) else loaded)
            loaded = single
        return typer.main.get_command(loaded)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        return self.load().make_context(info_name, args, parent, **extra)


class InstalledCommand(DeferredCommand):
    """A command of a catalogue.

    Args:
        name: Name in the catalogue.
        catalogue: Loads a Typer app, or a function that becomes a command.
        summary: One line for the list of commands.
    """

    def __init__(self, name: str, catalogue: Catalogue, summary: str) -> None:
        super().__init__(name, lambda: catalogue.load(name), summary)


class DeferredGroup(TyperGroup):
    """A group whose commands are looked for when one of them or their list is asked for."""

    def find_commands(self) -> None:
        """Add the commands; those that are there already stay."""
        raise NotImplementedError

    def list_commands(self, ctx: Any) -> list[str]:
        self._find_once()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, name: str) -> Any:
        self._find_once()
        return super().get_command(ctx, name)

    def _find_once(self) -> None:
        if not getattr(self, "_found", False):
            self._found = True
            self.find_commands()


class CatalogueGroup(DeferredGroup):
    """A group that also holds the commands of a catalogue; its own come first and win."""

    own: Mapping[str, str] = {}
    """Commands of its own, as `module:name`."""

    def catalogue(self) -> Catalogue:
        """Where the group looks for commands."""
        raise NotImplementedError

    def find_commands(self) -> None:
        for name, place in self.own.items():
            self.add_command(DeferredCommand(name, partial(load, place), summarise(place)))
        catalogue = self.catalogue()
        for entry in catalogue.entries():
            if escape_line(entry.name) not in self.commands:
                self.add_command(InstalledCommand(entry.name, catalogue, read_summary(entry)))


class BenchGroup(CatalogueGroup):
    """A group with the benchmarks of `erta_framework.benches`."""

    def catalogue(self) -> Catalogue:
        from erta_framework.plugins import benches

        return benches()


def load(place: str) -> Any:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def summarise(place: str) -> str:
    """The first line of the docstring of what `module:name` names; nothing is imported."""
    module, _, name = place.partition(":")
    return read_docstring(module, name).partition("\n")[0]


def read_summary(entry: Entry) -> str:
    """One line about a command, from its docstring in the source: nothing is imported.

    Where the source cannot be read, the distribution that provides it.
    """
    try:
        line = summarise(entry.point.value)
    except Exception:  # whatever a source of others may hold
        line = ""
    return line or f"From {entry.distribution} {entry.version}."


def read_docstring(module: str, name: str) -> str:
    """The docstring of a function, or of its module where it has none; empty without both.

    A package may re-export the function: `from package._inner import name` is followed.

    Raises:
        ImportError: A module has no source.
        SyntaxError: A source is no Python.
    """
    tree = ast.parse(find_source(module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node) or ast.get_docstring(tree) or ""
        if isinstance(node, ast.ImportFrom) and node.module not in (None, module):
            for alias in node.names:
                if (alias.asname or alias.name) == name and not node.level:
                    return read_docstring(str(node.module), alias.name)
    return ast.get_docstring(tree) or ""


def find_source(module: str) -> Path:
    """The file of a module. Unlike `find_spec` of a dotted name, it imports no parent package.

    Raises:
        ImportError: There is no such file.
    """
    top, *inner = module.split(".")
    spec = find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, *inner)
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    if spec is not None and spec.origin is not None and not inner:
        return Path(spec.origin)
    raise ImportError(f"no source of {module}")
