"""The app behind the `erta` command, and its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from erta_framework.cli._group import ErtaGroup

app = typer.Typer(
    name="erta",
    cls=ErtaGroup,
    help="Caching methods for diffusion models as plugins: sample, calibrate, plan, compare.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from erta_framework import __version__

        typer.echo(f"erta-framework {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error; may also follow the command."
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options that come before the command; `ErtaGroup` acts on `--debug`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `erta` command.

    Args:
        arguments: Instead of the command line.
    """
    # the same name for `python -m erta_framework`, which completion also goes by
    app(args=None if arguments is None else list(arguments), prog_name="erta")
