"""The app behind the `erta` command: its options and its own commands, in the order of `--help`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from erta_framework.cli._calibrate import calibrate
from erta_framework.cli._convert import schedule_app
from erta_framework.cli._explain import explain
from erta_framework.cli._group import ErtaGroup
from erta_framework.cli._hub import add_travel
from erta_framework.cli._inspect import inspect
from erta_framework.cli._options import expand_options
from erta_framework.cli._plan import plan
from erta_framework.cli._policies import list_policies
from erta_framework.cli._profile import profile_app
from erta_framework.cli._sample import sample

app = typer.Typer(
    name="erta",
    cls=ErtaGroup,
    help="Caching methods for diffusion models as plugins: sample, calibrate, plan, compare.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
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


for command in (sample, calibrate, plan, explain, inspect):
    app.command()(expand_options(command))
app.command("policies")(list_policies)
add_travel(profile_app)
app.add_typer(profile_app, name="profile")
app.add_typer(schedule_app, name="schedule")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `erta` command.

    Args:
        arguments: Instead of the command line.
    """
    app(args=None if arguments is None else list(arguments))
