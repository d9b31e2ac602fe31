"""What is built from the tree: the wheel, the sdist, the entry points and the version."""

from __future__ import annotations

import email
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import erta_framework

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "erta_framework": ROOT / "erta_framework",
    "erta_policies": ROOT / "policies/erta_policies",
    "erta_integrations": ROOT / "integrations/erta_integrations",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def build(kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("--wheel", tmp_path_factory.mktemp("wheel")))


def entry_points() -> list[tuple[str, str]]:
    groups = {**PROJECT["project"]["entry-points"], "scripts": PROJECT["project"]["scripts"]}
    return [(f"{group}:{name}", to) for group, held in groups.items() for name, to in held.items()]


def sources(folder: Path) -> set[str]:
    """Every file under a package that belongs to it, relative to the package's parent."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder.parent).as_posix()
        for path in files
        if "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    info = f"erta_framework-{erta_framework.__version__}.dist-info"
    assert tops == {*PACKAGES, info}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_holds_every_file_of_a_package(wheel: zipfile.ZipFile, package: str) -> None:
    packed = {name for name in wheel.namelist() if name.startswith(f"{package}/")}
    assert packed == sources(PACKAGES[package])
    assert f"{package}/py.typed" in packed
    assert not [name for name in packed if "tests" in name.split("/")]


def test_the_wheel_holds_the_weights_within_their_limit(wheel: zipfile.ZipFile) -> None:
    names = [name for name in wheel.namelist() if name.endswith(".safetensors")]
    assert "erta_integrations/shapes_wan/weights/shapes-wan.safetensors" in names
    held: Counter[str] = Counter()
    for name in names:
        held[name.split("/")[1]] += wheel.getinfo(name).file_size
    assert set(held) == {"shapes_wan"}, "the image models come with erta-bench"
    assert max(held.values()) < 6e6


def test_the_wheel_names_what_it_needs(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(path))
    assert metadata["Name"] == "erta-framework"
    assert metadata["License-Expression"] == "Apache-2.0"
    core = {
        re.split(r"[^a-z-]", requirement)[0]
        for requirement in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in requirement
    }
    assert core == {
        "cattrs",
        "numpy",
        "omegaconf",
        "pluggy",
        "rich",
        "safetensors",
        "torch",
        "typer",
    }
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert {"diffusers", "fabric", "report", "demo", "docs", "dev"} == extras


def test_the_wheel_carries_the_declared_entry_points(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    written = wheel.read(path).decode()
    for name, target in entry_points():
        assert f"{name.partition(':')[2]} = {target}" in written.splitlines()


def test_the_sdist_can_be_worked_on(tmp_path: Path) -> None:
    with tarfile.open(build("--sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "Makefile", "README.md", "LICENSE", "constraints.txt", "mkdocs.yml"}
    wanted |= {"tests/test_packaging.py", "docs/index.md", "docs/tables/markers.py", ".ci/run"}
    wanted |= {f"{PACKAGES[p].relative_to(ROOT).as_posix()}/py.typed" for p in PACKAGES}
    assert wanted <= names
    assert not {name for name in names if name.startswith(("runs/", ".venv/", "site/"))}


@pytest.mark.parametrize(("name", "target"), entry_points())
def test_an_entry_point_is_importable(name: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute)), name


def test_the_version_is_the_same_everywhere(wheel: zipfile.ZipFile) -> None:
    version = erta_framework.__version__
    assert PROJECT["project"]["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version}]" in changelog
    assert wheel.filename is not None
    assert Path(wheel.filename).name == f"erta_framework-{version}-py3-none-any.whl"


def test_every_pin_of_the_constraints_belongs_to_a_dependency() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if line and line[0] != "#")
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"], *(r for held in extras.values() for r in held)]
    names = {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in declared}
    names -= {"erta-framework"}
    assert set(pins) >= names, "a dependency without a known version"
    assert pins["torch"] == "2.13.0"
