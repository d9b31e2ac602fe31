"""What is built from the tree: wheels and sdists of both distributions, and what each holds."""

from __future__ import annotations

import email
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import erta_framework

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "erta_framework": ROOT / "erta_framework",
    "erta_policies": ROOT / "policies/erta_policies",
    "erta_integrations": ROOT / "integrations/erta_integrations",
}
BENCH = ROOT / "bench"
BENCH_PACKAGES = {
    "erta_bench": BENCH / "erta_bench",
    "tiny_pipelines": ROOT / "tests/tiny_pipelines",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BENCH_PROJECT = tomllib.loads((BENCH / "pyproject.toml").read_text(encoding="utf-8"))


def build(kind: str, folder: Path, source: Path = ROOT) -> Path:
    """Build without the network, and without what an isolated environment would fetch."""
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("--wheel", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def bench_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("--wheel", tmp_path_factory.mktemp("bench_wheel"), BENCH))


def entry_points(project: dict[str, Any] = PROJECT) -> list[tuple[str, str]]:
    groups = {
        **project["project"]["entry-points"],
        "scripts": project["project"].get("scripts", {}),
    }
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
    assert set(held) == {"shapes_wan", "words"}, "the image models come with erta-bench"
    assert held["shapes_wan"] < 6e6
    assert held["words"] < 1e6


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
        "pyyaml",
        "rich",
        "safetensors",
        "torch",
        "typer",
    }
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert {
        "diffusers",
        "fabric",
        "hub",
        "language",
        "ray",
        "report",
        "demo",
        "quantization",
        "docs",
        "dev",
    } == extras


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


@pytest.mark.parametrize(("name", "target"), entry_points() + entry_points(BENCH_PROJECT))
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


# ---------------------------------------------------------------------------- erta-bench
def test_the_bench_wheel_holds_its_packages_whole_and_nothing_else(
    bench_wheel: zipfile.ZipFile,
) -> None:
    info = f"erta_bench-{erta_framework.__version__}.dist-info"
    names = set(bench_wheel.namelist())
    assert {name.split("/")[0] for name in names} == {*BENCH_PACKAGES, info}
    for package, folder in BENCH_PACKAGES.items():
        packed = {name for name in names if name.startswith(f"{package}/")}
        assert packed == sources(folder), package
    weights = {name for name in names if name.endswith(".safetensors")}
    folder = "erta_bench/shapes_image/weights"
    assert weights == {f"{folder}/shapes-flux.safetensors", f"{folder}/shapes-unet.safetensors"}
    assert all(bench_wheel.getinfo(name).file_size < 6e6 for name in weights)


def test_no_file_is_in_both_wheels(wheel: zipfile.ZipFile, bench_wheel: zipfile.ZipFile) -> None:
    assert not set(wheel.namelist()) & set(bench_wheel.namelist())


def test_the_bench_wheel_needs_the_framework_and_carries_its_entry_points(
    bench_wheel: zipfile.ZipFile,
) -> None:
    (path,) = (name for name in bench_wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(bench_wheel.read(path))
    assert (metadata["Name"], metadata["Version"]) == ("erta-bench", erta_framework.__version__)
    assert metadata.get_all("Requires-Dist") == ["erta-framework[diffusers,fabric,report]"]
    (path,) = (name for name in bench_wheel.namelist() if name.endswith("/entry_points.txt"))
    written = bench_wheel.read(path).decode().splitlines()
    for name, target in entry_points(BENCH_PROJECT):
        assert f"{name.partition(':')[2]} = {target}" in written


def test_the_bench_sdist_builds_the_same_wheel_far_from_the_checkout(
    bench_wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    with tarfile.open(build("--sdist", tmp_path / "sdist", BENCH)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = zipfile.ZipFile(build("--wheel", tmp_path / "wheel", source))
    assert set(again.namelist()) == set(bench_wheel.namelist())
    path = next(name for name in again.namelist() if name.endswith("/METADATA"))
    assert again.read(path) == bench_wheel.read(path)


def test_a_bench_without_the_tiny_pipelines_is_not_built(tmp_path: Path) -> None:
    shutil.copytree(BENCH, tmp_path / "bench", ignore=shutil.ignore_patterns("erta_bench", "dist"))
    (tmp_path / "bench/erta_bench").mkdir()
    (tmp_path / "erta_framework").mkdir()
    shutil.copy(ROOT / "erta_framework/__init__.py", tmp_path / "erta_framework")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(tmp_path / "bench")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "erta-bench needs tiny_pipelines" in done.stdout + done.stderr


def test_an_editable_install_of_the_bench_copies_nothing(tmp_path: Path) -> None:
    hook = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    command = [sys.executable, "-c", hook, str(tmp_path)]
    done = subprocess.run(command, cwd=BENCH, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    assert not [name for name in names if name.startswith(("tiny_pipelines", "erta_bench/"))]
    (path,) = (name for name in names if name.endswith(".pth"))
    folders = zipfile.ZipFile(built).read(path).decode().splitlines()
    assert [Path(folder).resolve() for folder in folders] == [BENCH, ROOT / "tests"]


def test_the_node_wheel_holds_its_package_and_needs_the_framework(tmp_path: Path) -> None:
    built = zipfile.ZipFile(build("--wheel", tmp_path, ROOT / "integrations/comfyui"))
    names = {name for name in built.namelist() if ".dist-info/" not in name}
    assert names == sources(ROOT / "integrations/comfyui/erta_comfyui")
    (path,) = (name for name in built.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(built.read(path))
    assert (metadata["Name"], metadata["Version"]) == ("erta-comfyui", erta_framework.__version__)
    assert metadata.get_all("Requires-Dist") == ["erta-framework>=0.2"]


HIDDEN = """
import importlib, importlib.abc, pkgutil, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("erta_bench", "tiny_pipelines"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Hide())
count = 0
for package in sys.argv[1:]:
    held = importlib.import_module(package)
    for module in pkgutil.walk_packages(held.__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print(count)
"""


def test_every_module_of_the_users_wheel_imports_without_the_bench() -> None:
    command = [sys.executable, "-c", HIDDEN, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150
    done = subprocess.run([*command, "erta_bench"], capture_output=True, text=True, check=False)
    assert "No module named 'erta_bench'" in done.stderr, "the finder hides nothing"
