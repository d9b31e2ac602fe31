"""Show a calibration profile, add up several, share them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from erta_framework.calibration import Profile
from erta_framework.cli._hub import add_travel
from erta_framework.cli._options import Force, Json
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.files import require_writable
from erta_framework.text import escape_line

profile_app = typer.Typer(
    help="Show a calibration profile, add up several, share them.",
    no_args_is_help=True,
    add_completion=False,  # that of `erta` completes these too
)


@profile_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A profile.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show what a profile was calibrated for, where it comes from and what it holds."""
    profile = Profile.load(file)
    shapes = {name: list(value.shape) for name, value in profile.statistics.items()}
    if as_json:
        facts = {
            "kind": profile.kind,
            "samples": profile.samples,
            "digest": profile.digest,
            "fingerprint": dict(profile.fingerprint),
            "provenance": dict(profile.provenance),
            "statistics": shapes,
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, title=Text(escape_line(file)), title_justify="left")
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    head = {"kind": profile.kind, "samples": str(profile.samples), "digest": profile.digest}
    sizes = {name: " x ".join(map(str, shape)) for name, shape in shapes.items()}
    for section in (head, profile.fingerprint, profile.provenance, sizes):
        for name, value in section.items():
            table.add_row(escape_line(name), escape_line(value))
        table.add_section()
    make_console().print(table)


@profile_app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Two or more profiles.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)
    ],
    force: Force = False,
) -> None:
    """Add up profiles that were calibrated in parts, such as on several machines.

    Profiles of different settings are refused. The error lists both values of each difference.
    """
    if len(files) < 2:
        raise InputError(f"merging takes two or more profiles, got {len(files)}")
    if output.exists() and not force:
        raise InputError(f"{output} exists; give --force to replace it")
    require_writable(output, "merged profile")
    merged = Profile.merge([Profile.load(file) for file in files])
    merged.save(output)
    make_console().print(escape_line(f"{merged!r} written to {output}"), soft_wrap=True)


add_travel(profile_app)
