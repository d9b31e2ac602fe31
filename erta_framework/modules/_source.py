"""Reads the source of `forward`: in which order the children of a module run."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain, zip_longest

from torch import nn

Group = tuple[tuple[str, int], ...]
"""Children that run in turns: the name of each and the member that it begins with."""


def parse_method(cls: type, name: str = "forward") -> ast.FunctionDef | None:
    """The syntax tree of a method; None where its source is not at hand."""
    method = getattr(cls, name, None)
    return parse_function(inspect.unwrap(method)) if inspect.isfunction(method) else None


@lru_cache(maxsize=512)
def parse_function(function: Callable[..., object]) -> ast.FunctionDef | None:
    """The syntax tree of a function; None where its source is not at hand."""
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return found if isinstance(found, ast.FunctionDef) else None


def find_own_name(node: ast.expr) -> str:
    """The `name` of `self.name` and of `self.name[...]`; empty for anything else."""
    if isinstance(node, ast.Subscript):
        node = node.value
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    if own and node.value.id == "self":  # type: ignore[attr-defined]
        return str(node.attr)  # type: ignore[attr-defined]
    return ""


def find_start(node: ast.expr) -> int:
    """The `n` of `self.name[n:]`, else 0."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        lower = node.slice.lower
        if isinstance(lower, ast.Constant) and isinstance(lower.value, int):
            return lower.value
    return 0


class OrderReader(ast.NodeVisitor):
    """Collects the children that a method mentions, as they are evaluated.

    Attributes:
        groups: Children that run in turns stand in one group.
    """

    def __init__(self, cls: type, names: frozenset[str]) -> None:
        self.cls, self.names = cls, names
        self.groups: list[Group] = []
        self._read: set[str] = set()

    def read(self, method: str) -> None:
        """Collect what a method mentions, and the methods that it calls."""
        if method not in self._read and (found := parse_method(self.cls, method)):
            self._read.add(method)
            for statement in found.body:
                self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "zip":
            parts = [(find_own_name(each), find_start(each)) for each in node.args]
            self._add(tuple(part for part in parts if part[0] in self.names))
            return
        for part in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(part)
        own = find_own_name(node.func)
        if own and own not in self.names:
            self.read(own)
        self.visit(node.func)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        own = find_own_name(node)
        if own in self.names:
            self._add(((own, 0),))
        self.generic_visit(node)

    def _add(self, group: Group) -> None:
        if len(group) > 1:  # they run in turns, whatever mentioned one of them alone before
            names = {name for name, _ in group}
            self.groups = [each for each in self.groups if len(each) > 1 or each[0][0] not in names]
        known = {name for found in self.groups for name, _ in found}
        fresh = tuple(part for part in group if part[0] not in known)
        if fresh:
            self.groups.append(fresh)


def find_order(module: nn.Module) -> list[Group]:
    """The children of a module in the order in which its `forward` runs them.

    Children that the source does not mention come last, as they were registered.
    """
    names = [name for name, _ in module.named_children()]
    reader = OrderReader(type(module), frozenset(names))
    reader.read("forward")
    mentioned = {name for group in reader.groups for name, _ in group}
    return [*reader.groups, *(((name, 0),) for name in names if name not in mentioned)]


def iter_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of a module in the order in which they run; the members of lists one by one.

    Members of lists that run in turns, as those of `zip(self.resnets, self.attentions)`, come in
    turns too.

    Example:
        >>> [name for name, _ in iter_children(stage)]  # doctest: +SKIP
        ['resnets.0', 'attentions.0', 'resnets.1', 'attentions.1', 'downsamplers.0']
    """
    if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
        yield from module.named_children()
        return
    children = dict(module.named_children())
    for group in find_order(module):
        columns = []
        for name, start in group:
            column = list_members(name, children[name])
            yield from column[:start]
            columns.append(column[start:])
        yield from filter(None, chain.from_iterable(zip_longest(*columns)))


def list_members(name: str, child: nn.Module) -> list[tuple[str, nn.Module]]:
    """A child, or the members of a list, with their names."""
    if isinstance(child, nn.ModuleList):
        return [(f"{name}.{index}", member) for index, member in enumerate(child)]
    return [(name, child)]
