"""The command group: `--debug`, errors as one message, and the list of commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from erta_framework.errors import ConfigError, ErtaError, InputError

USAGE_ERRORS = (ConfigError, InputError, OSError)
"""What the caller gave was wrong (exit status 2); any other `ErtaError` exits with 1."""


ORDER = ("demo", "sample", "calibrate", "plan", "bench", "policies", "explain", "profile")


class ErtaGroup(TyperGroup):
    """Prints errors as one red message with their notes; `--debug`, anywhere, shows tracebacks."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in ORDER if name in self.commands]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["erta.debug"] = "--debug" in args
        return super().parse_args(ctx, [arg for arg in args if arg != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ErtaError, OSError) as error:
            if ctx.meta["erta.debug"]:
                raise
            print_error(error)
            raise typer.Exit(2 if isinstance(error, USAGE_ERRORS) else 1) from error


def print_error(error: BaseException) -> None:
    """One red message on standard error: what happened, where, and where to see more."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text(f"error: {error}", style="bold red"))
    for note in getattr(error, "__notes__", ()):
        console.print(Text(f"  {note}", style="red"))
    console.print(Text("add --debug to see the traceback", style="dim"))


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
        bool, typer.Option("--debug", help="Show tracebacks of errors; allowed anywhere.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options that come before the command; `ErtaGroup` acts on `--debug`."""


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
    add_help_option=False,
)
def bench(ctx: typer.Context) -> None:
    """Run a benchmark; without a name, list them all."""
    from importlib import import_module

    bench_app = import_module("erta_bench.cli").app
    code = bench_app(args=ctx.args or ["--help"], prog_name="erta bench", standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `erta` command.

    Args:
        arguments: Instead of the command line.
    """
    app(args=None if arguments is None else list(arguments))


# the commands add themselves to the app above
from erta_framework.cli import catalogue, demo, plan, profile, runs  # noqa: E402, F401
