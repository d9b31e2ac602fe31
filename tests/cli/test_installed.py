"""Commands that installed distributions add to `erta`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from erta_framework.plugins import Catalogue, commands

COMMANDS = '''"""Loud things."""

import typer

print("imported")
app = typer.Typer(help="Loud things.")


@app.command()
def first():
    """The first of two."""


@app.command()
def second(times: int = 1):
    """The second of two."""
    print("second" * times)


def shout(text: str):
    """Say something loudly.

    Twice.
    """
    print(text.upper())


NUMBER = 3
'''
POINTS = """[erta_framework.commands]
shout = erta_loud.inner.commands:shout
loud = erta_loud.inner.commands:app
number = erta_loud.inner.commands:NUMBER
gone = erta_loud.inner.absent:gone
sick = erta_loud.sick:run
sample = erta_loud.inner.commands:shout
"""


@pytest.fixture(autouse=True)
def loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "loud-site"
    package = site / "erta_loud"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("print('package imported')\n")
    (package / "inner/__init__.py").write_text("")
    (package / "inner/commands.py").write_text(COMMANDS)
    (package / "sick.py").write_text("raise RuntimeError('feverish')\n")
    info = site / "erta_loud-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-loud\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "erta_loud"]:
        del sys.modules[name]


def test_the_list_shows_summaries_and_imports_nothing(erta):
    done = erta("--help")
    assert done.exit_code == 0, done.output
    lines = {line.split()[1]: line for line in done.output.splitlines() if line[:3] == "│ s"}
    assert "Say something loudly." in lines["shout"]
    assert "From erta-loud 2.0." in lines["sick"]
    assert "Loud things." in done.output
    assert "imported" not in done.output
    assert "erta_loud" not in sys.modules


def test_the_summary_of_a_function_that_a_package_re_exports_is_its_own(erta):
    listed = erta("bench", "--help").output
    assert "Which caches work on which diffusers pipelines" in " ".join(listed.split())
    assert "The commands `erta bench" not in listed


def test_a_function_and_an_app_become_commands(erta):
    assert erta("shout", "hello").output.splitlines()[-1] == "HELLO"
    assert erta("loud", "second", "--times", "2").output.splitlines()[-1] == "secondsecond"
    helped = erta("loud", "second", "--help")
    assert "Usage: erta loud second" in helped.output
    assert erta("shout").exit_code == 2
    assert erta("shout", "a", "--nope").exit_code == 2


def test_erta_keeps_its_own_commands(erta):
    assert "writes GIFs" in erta("sample", "--help").output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sick", "'sick' of erta-loud 2.0 (erta_loud.sick:run) failed to import: RuntimeError"),
        ("gone", "'gone' of erta-loud 2.0 (erta_loud.inner.absent:gone) failed to import"),
        ("number", "is 3, not a function that typer can run"),
    ],
)
def test_a_broken_command_fails_alone_and_says_whose_it_is(erta, name, message):
    done = erta(name)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert erta("policies", "--no-hooks").exit_code == 0


def test_the_limit_hides_commands_of_others(erta, monkeypatch):
    monkeypatch.setenv("ERTA_PLUGINS", "erta-toy")
    listed = erta("--help").output
    assert "shout" not in listed
    assert "demo" in listed
    assert "bench" in listed
    done = erta("shout", "hello")
    assert done.exit_code == 2
    assert "erta shout comes from erta-loud, which ERTA_PLUGINS=erta-toy" in done.output
    assert "erta_loud" not in sys.modules
    monkeypatch.setenv("ERTA_PLUGINS", "erta-loud")
    assert erta("shout", "hello").exit_code == 0


def test_two_providers_of_a_command_are_an_error_of_that_command(erta, tmp_path):
    info = tmp_path / "loud-site" / "erta_rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[erta_framework.commands]\nshout = erta_rival:shout\n")
    done = erta("shout", "hello")
    assert done.exit_code == 1
    assert "erta-loud 2.0" in done.output
    assert "erta-rival 1.0" in done.output


def test_an_unknown_command_names_the_closest(erta):
    done = erta("shuot")
    assert done.exit_code == 2
    assert "Did you mean 'shout'" in done.output


# -------------------------------------------------------------------------- erta bench
@pytest.mark.parametrize("arguments", [(), ("--help",), ("overhead", "--steps", "3")])
def test_bench_says_in_one_line_how_to_get_it(erta, monkeypatch, arguments):
    real = commands().entries()
    others = [entry for entry in real if entry.name != "bench"]
    assert len(others) == len(real) - 1
    monkeypatch.setattr(Catalogue, "entries", lambda _: others)
    done = erta("bench", *arguments)
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert "pip install erta-bench" in line
    assert not [line for line in erta("--help").output.splitlines() if line[:7] == "│ bench"]


def test_a_broken_benchmark_does_not_break_the_list(erta, tmp_path):
    info = tmp_path / "loud-site" / "erta_odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[erta_framework.benches]\nodd = erta_loud.sick:run\n")
    listed = erta("bench", "--help")
    assert listed.exit_code == 0, listed.output
    assert "From erta-odd 1.0." in listed.output
    assert erta("bench", "odd").exit_code == 1
