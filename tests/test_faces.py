"""Packages know each other by their faces: what an `__init__` names, never a private module."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "erta_framework": ROOT,
    "erta_policies": ROOT / "policies",
    "erta_integrations": ROOT / "integrations",
    "erta_comfyui": ROOT / "integrations/comfyui",
    "erta_bench": ROOT / "bench",
}
OTHERS = ("docs", "examples")
"""Folders of scripts and of example packages, which are outside of every package."""
CORE_FACES = sorted(
    path.parent.relative_to(ROOT).as_posix().replace("/", ".")
    for path in (ROOT / "erta_framework").rglob("__init__.py")
)


def list_files() -> Iterator[tuple[str, Path]]:
    """Every source file with the dotted name of its module; `<folder>` outside of packages."""
    for package, base in SOURCES.items():
        for path in sorted((base / package).rglob("*.py")):
            dotted = path.relative_to(base).with_suffix("").as_posix().replace("/", ".")
            yield dotted.removesuffix(".__init__"), path
    for folder in OTHERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield f"<{folder}>", path


def list_imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, those of `from package import _module` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (
                f"{node.module}.{name.name}" for name in node.names if name.name.startswith("_")
            )


def is_private_elsewhere(module: str, imported: str) -> bool:
    """Whether `imported` is a private module of a package that `module` is not in.

    >>> is_private_elsewhere("erta_framework.report._page", "erta_framework.session._trace")
    True
    >>> is_private_elsewhere("erta_framework.session._call", "erta_framework.session._trace")
    False
    """
    parts = imported.split(".")
    if parts[0] not in SOURCES:
        return False
    for place, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            owner = ".".join(parts[:place])
            return not (module == owner or module.startswith(f"{owner}."))
    return False


def test_nobody_imports_a_private_module_of_another_package() -> None:
    found = sorted(
        f"{path.relative_to(ROOT)}: {imported}"
        for module, path in list_files()
        for imported in list_imports(path)
        if is_private_elsewhere(module, imported)
    )
    assert not found, "import these from the face of their package:\n" + "\n".join(found)


def test_the_check_sees_imports() -> None:
    assert is_private_elsewhere("erta_policies.fora._rule", "erta_framework.session._call")
    assert is_private_elsewhere("<docs>", "erta_bench.core._outcome")
    assert not is_private_elsewhere("erta_framework.session", "erta_framework.session._call")
    assert not is_private_elsewhere("erta_framework.cli._app", "erta_framework.__version__")


@pytest.mark.parametrize("name", CORE_FACES)
def test_a_face_says_what_the_package_is_and_lists_what_it_offers(name: str) -> None:
    face = importlib.import_module(name)
    assert face.__doc__
    assert face.__doc__.splitlines()[0].rstrip().endswith(".")
    assert all(hasattr(face, listed) for listed in face.__all__)
    imported = {
        node.module: [alias.asname or alias.name for alias in node.names]
        for node in ast.walk(ast.parse(Path(str(face.__file__)).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(name)
    }
    imported.pop("erta_framework._deferred", None)  # how a face imports, not what it offers
    unlisted = {one for names in imported.values() for one in names} - set(face.__all__)
    assert not unlisted
