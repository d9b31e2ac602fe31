"""The core and the policies know nothing of ranks.

import-linter forbids them lightning; it cannot name a part of torch, so that is looked for here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SOURCES = [
    *sorted((ROOT / "erta_framework").rglob("*.py")),
    *sorted((ROOT / "policies").rglob("*.py")),
]
FORBIDDEN = ("lightning", "lightning_fabric", "pytorch_lightning", "torch.distributed")


def used(source: str) -> set[str]:
    """The dotted names that a source imports or reads as attributes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


def forbidden(source: str) -> list[str]:
    return sorted(
        name
        for name in used(source)
        if any(name == root or name.startswith(f"{root}.") for root in FORBIDDEN)
    )


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed.device_mesh import DeviceMesh",
        "import torch\ntorch.distributed.barrier()",
        "def f():\n    from lightning.fabric import Fabric",
    ],
)
def test_the_search_finds_every_way_to_import(source: str) -> None:
    assert forbidden(source)


def test_the_core_and_the_policies_use_no_ranks() -> None:
    assert len(SOURCES) > 60
    guilty = {
        path.relative_to(ROOT).as_posix(): forbidden(path.read_text("utf-8")) for path in SOURCES
    }
    assert {path: names for path, names in guilty.items() if names} == {}
