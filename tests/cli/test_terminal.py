"""What is printed is text, whoever wrote it: markup and control characters of others do nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from rich.progress import Progress, TextColumn
from rich.table import Table

from erta_framework import Profile
from erta_framework.console import make_console
from erta_framework.errors import ConfigError
from erta_framework.text import escape_line, escape_text, show_error, show_value

NASTY = "[bold]b[/bold] \x1b[31mred\x1b[0m\x07\x08 \x9b2J :smile: \u202egnp.exe <b>x</b> \ud800"
VISIBLE = (
    "[bold]b[/bold] \\x1b[31mred\\x1b[0m\\x07\\x08 \\x9b2J :smile: \\u202egnp.exe <b>x</b> \\ud800"
)


def shown(show) -> str:
    file = io.StringIO()
    show(make_console(file=file, width=300))
    return file.getvalue()


def is_clean(text: str) -> bool:
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)


# ----------------------------------------------------------------------------- helpers
def test_texts_keep_their_lines_and_names_do_not():
    assert escape_text(f"a\n\tb {NASTY}") == f"a\n\tb {VISIBLE}"
    assert escape_line(f"a\n\tb {NASTY}") == f"a\\n\\tb {VISIBLE}"
    assert escape_line("a\rb\u2028c\x85d\x0be") == "a\\rb\\u2028c\\x85d\\x0be"
    plain = "Größe 視頻 ∑ é \U0001f600 \\x1b"
    assert escape_line(plain) == plain
    assert escape_text(escape_text(NASTY)) == VISIBLE


def test_every_character_that_is_no_text_is_escaped():
    for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xD800, 0xDFFF]:
        found = escape_line(f"a{chr(code)}b")
        assert is_clean(found)
        assert "\n" not in found
        assert found.isascii()


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


def test_a_value_is_shown_short_and_whatever_its_repr_does():
    assert show_value("a\n\x1b") == "'a\\n\\x1b'"
    assert len(show_value("x" * 10**6)) == 200
    assert show_value(Raises()) == "<Raises, whose repr raises RuntimeError>"
    assert show_value(10**5000) == "<int, whose repr raises ValueError>"
    assert show_error(ValueError("x\n\x1b[31m")) == "ValueError: x\\n\\x1b[31m"
    assert show_error(ValueError(Raises())).startswith("ValueError: <a message that raises")
    assert len(show_error(ValueError("x" * 10**6))) == 1000


# ----------------------------------------------------------------------------- console
def test_printed_text_is_text():
    assert shown(lambda out: out.print(NASTY)).strip() == VISIBLE
    assert shown(lambda out: out.print(NASTY, style="bold red", soft_wrap=True)).strip() == VISIBLE


def test_tables_keep_their_shape():
    table = Table(title="title", caption=NASTY)
    table.add_column(NASTY, no_wrap=True)
    table.add_column("b")
    table.add_row(NASTY, "x")
    found = shown(lambda out: out.print(table))
    assert is_clean(found)
    assert found.count("[bold]b[/bold] \\x1b[31mred") == 3
    rows = [line for line in found.splitlines() if line.startswith(("│", "┃"))]
    assert len({len(row) for row in rows}) == 1


def test_bars_are_text_as_well():
    file = io.StringIO()
    console = make_console(file=file, width=300, force_terminal=True, color_system=None)
    column = TextColumn("{task.description}", markup=False)
    with Progress(column, console=console) as bar:
        bar.add_task(NASTY, total=1)
    assert "[bold]b[/bold] \\x1b[31mred\\x1b[0m" in file.getvalue()
    assert "\x1b[31m" not in file.getvalue()
    assert "\u202e" not in file.getvalue()


def test_styles_of_ours_still_show_on_a_terminal():
    file = io.StringIO()
    console = make_console(file=file, force_terminal=True, color_system="standard")
    console.print("x\x1b[2J", style="red")
    assert file.getvalue() == "\x1b[31mx\\x1b[2J\x1b[0m\n"


# ---------------------------------------------------------------------------- commands
def test_an_error_is_shown_as_text(erta):
    done = erta("explain", f"solver={NASTY[:-1]}")
    assert done.exit_code == 2
    assert is_clean(done.output)
    assert "[bold]b[/bold]" in done.output
    assert erta("explain", f"{NASTY[:-1]}=1").exit_code == 2


def test_a_note_is_shown_as_text(capsys):
    from erta_framework.cli._group import print_error

    error = ConfigError(f"a {NASTY}")
    error.add_note(f"b {NASTY}")
    print_error(error)
    found = capsys.readouterr().err
    assert f"error: a {VISIBLE}" in found
    assert f"  b {VISIBLE}" in found


def test_a_profile_is_shown_as_text(erta, tmp_path):
    nasty = NASTY[:-1]  # a file holds no half of a character
    made = Profile(
        "toy", {"num_steps": "2", f"k{nasty}": nasty}, {"x": torch.ones(1)}, samples=1,
        provenance={f"line\n{nasty}": f"a\nb{nasty}"},
    )  # fmt: skip
    path = tmp_path / "a [red]b.safetensors"
    made.save(path)
    done = erta("profile", "show", str(path))
    assert done.exit_code == 0, done.output
    assert is_clean(done.output)
    assert "[bold]b[/bold]" in done.output
    assert "line\\n" in done.output
    assert "[red]b" in "".join(done.output.split("\n"))


COMMAND = '''
def run():
    """[bold red]Loud[/] \\x1b[31m :smile: [link=http://x]here[/link]"""
'''


@pytest.fixture
def loud(tmp_path: Path, monkeypatch) -> None:
    site = tmp_path / "site"
    info = site / "erta_loud-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-loud\nVersion: [b]1\n")
    points = "".join(
        f"[erta_framework.{group}]\n[bold]x\x1b[31m[/bold] = erta_loud_text:run\n"
        for group in ("commands", "benches", "policies")
    )
    (info / "entry_points.txt").write_text(points)
    (site / "erta_loud_text.py").write_text(COMMAND)
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["bench", "--help"], ["policies"], ["policies", "--no-hooks"]]
)
def test_names_and_summaries_of_others_are_listed_as_text(erta, loud, arguments):
    done = erta(*arguments)
    assert done.exit_code == 0, done.output
    assert is_clean(done.output)
    assert "[bold]x\\x1b[31m[/bold]" in done.output
    if "--help" in arguments:
        assert "[bold red]Loud[/] \\x1b[31m" in done.output


def test_a_command_of_such_a_name_runs(erta, loud):
    done = erta("[bold]x\\x1b[31m[/bold]")
    assert done.exit_code == 0, done.output
