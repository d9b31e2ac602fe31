"""Convert schedules between the formats of caching projects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from erta_framework.budgets.formats import list_formats, load_format
from erta_framework.cli._options import Force, Json, unset
from erta_framework.config import options_from
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.files import require_writable, write_atomically
from erta_framework.text import escape_line, escape_text

schedule_app = typer.Typer(
    help="Convert schedules between the formats of caching projects.",
    no_args_is_help=True,
    add_completion=False,  # that of `erta` completes these too
)


@schedule_app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A schedule file.", show_default=False)],
    source: Annotated[str, unset("Its format; see `erta schedule formats`.", "--from")],
    target: Annotated[str, unset("The format to write.", "--to")],
    steps: Annotated[
        int | None, unset("Steps of the schedule, where the file does not say them.", min=1)
    ] = None,
    reading: Annotated[
        list[str] | None, unset("A setting for reading, as KEY=VALUE.", "--read")
    ] = None,
    writing: Annotated[
        list[str] | None, unset("A setting for writing, as KEY=VALUE.", "--write")
    ] = None,
    output: Annotated[
        Path | None, unset("File to write; by default it is printed.", "--output", "-o")
    ] = None,
    force: Force = False,
) -> None:
    """Write a schedule in another format.

    What the other format has no room for is named on the standard error. A schedule that it cannot
    say is refused.
    """
    read, written = load_format(source), load_format(target)
    if output is not None:
        if output.exists() and not force:
            raise InputError(f"{output} exists; give --force to replace it")
        require_writable(output, "schedule")
    document = read.read(file, steps, options_from("--read", reading or ()))
    text = written.write(document, options_from("--write", writing or ()))
    losses = document.list_losses(written.keeps)
    if losses:
        typer.echo(f"lost: {escape_line(', '.join(losses))}", err=True)
    if output is None:
        typer.echo(escape_text(text), nl=False)
        return
    write_atomically(output, text.encode("utf-8"))
    typer.echo(escape_line(f"wrote {output}"), err=True)


@schedule_app.command("formats")
def show_formats(as_json: Json = False) -> None:
    """List the formats that are read and written, with their settings."""
    found = list_formats()
    if as_json:
        rows = {
            name: {
                "title": each.title,
                "read": list(each.read_options),
                "write": list(each.write_options),
            }
            for name, each in found.items()
        }
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("format", "what it is", "--read", "--write")
    for name, each in found.items():
        cells = (name, each.title, ", ".join(each.read_options), ", ".join(each.write_options))
        table.add_row(*map(escape_line, cells))
    make_console().print(table)
