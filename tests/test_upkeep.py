"""What keeps the project in shape: one list of checks, the changelog, the limit of coverage."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def towncrier(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "towncrier", "build", *arguments, "--dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What towncrier reads, with nothing to release."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    kept = ("template.md.jinja", ".gitkeep")
    (tmp_path / "changelog.d").mkdir()
    for name in kept:
        shutil.copy(ROOT / "changelog.d" / name, tmp_path / "changelog.d")
    return tmp_path


def test_the_hooks_before_a_commit_are_the_checks_of_make_lint() -> None:
    (checks,) = re.findall(r"^CHECKS := (.+)$", MAKEFILE, re.MULTILINE)
    assert re.search(r"^lint: .*\n\t@\$\(MAKE\) .*\$\(CHECKS\)$", MAKEFILE, re.MULTILINE)
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [held["repo"] for held in config["repos"]] == ["local"], "a hook would be downloaded"
    hooks = config["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == [f"make --silent {name}" for name in checks.split()]
    assert {hook["language"] for hook in hooks} == {"system"}
    for name in checks.split():
        assert re.search(rf"^{name}:\n\t", MAKEFILE, re.MULTILINE), "a check runs nothing"


def test_entries_are_built_in_the_form_of_the_changelog(project: Path) -> None:
    (project / "changelog.d/solver.fixed.md").write_text("Second.\n", encoding="utf-8")
    (project / "changelog.d/a-b.added.md").write_text("First,\non two lines.\n", encoding="utf-8")
    before = (project / "CHANGELOG.md").read_text(encoding="utf-8")
    arguments = ["--version", "9.0.0", "--date", "2030-01-02"]
    done = towncrier(project, "--draft", *arguments)
    assert done.returncode == 0, done.stderr
    entry = (
        "## [9.0.0] - 2030-01-02\n\n### Added\n\n- First,\n  on two lines.\n\n"
        "### Fixed\n\n- Second.\n"
    )
    assert done.stdout.startswith(entry)
    assert (project / "CHANGELOG.md").read_text(encoding="utf-8") == before

    done = towncrier(project, "--keep", *arguments)
    assert done.returncode == 0, done.stderr
    head, marker, rest = before.partition("<!-- releases -->\n\n")
    assert marker
    after = (project / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.sub(r"\n\n+", "\n\n", after) == re.sub(
        r"\n\n+", "\n\n", head + marker + entry + "\n" + rest
    )


@pytest.mark.parametrize("name", ["solver.nonsense.md", "loose.md"])
def test_an_entry_of_no_known_kind_is_refused(project: Path, name: str) -> None:
    (project / "changelog.d" / name).write_text("Lost.\n", encoding="utf-8")
    done = towncrier(project, "--draft", "--version", "9.0.0")
    assert done.returncode != 0
    assert f"Invalid news fragment name: {name}" in done.stderr


def test_the_entries_that_wait_can_be_built() -> None:
    done = towncrier(ROOT, "--draft", "--version", "9.0.0")
    assert done.returncode == 0, done.stderr


def test_continuous_integration_applies_the_limit_of_coverage() -> None:
    assert "run make test COVERAGE=--cov\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.search(r'-m "not slow" .*\$\(COVERAGE\)$', MAKEFILE, re.MULTILINE)
    assert SETTINGS["coverage"]["run"] == {"branch": True, "source": ["erta_framework"]}
    assert SETTINGS["coverage"]["report"]["fail_under"] >= 90


def test_the_map_of_the_contributors_names_what_is_there() -> None:
    table = CONTRIBUTING.partition("## Where does it go?")[2].partition("\n## ")[0]
    paths = re.findall(r"`((?:\w+/)[\w./]*)", table)
    assert len(paths) > 25
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_names_every_source_folder() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("## What lives where")[2].partition("\n## ")[0]
    folders = re.findall(r"`([\w/]+)/`", listed)
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    assert {folder.split("/")[0] for folder in folders} == {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and next(path.rglob("*.py"), None) and path.name[0] != "."
    } - {"build", "dist", "site", "runs"}
