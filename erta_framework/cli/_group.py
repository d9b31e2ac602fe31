"""The group `erta`: `--debug` anywhere, errors as one message, commands of other distributions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from erta_framework.cli._installed import CatalogueGroup
from erta_framework.console import make_console
from erta_framework.errors import ConfigError, ErtaError, InputError, UnusedWarning
from erta_framework.optional_dependencies import find_extra
from erta_framework.text import escape_text

if TYPE_CHECKING:
    from erta_framework.plugins import Catalogue

OWN = {
    "sample": "erta_framework.cli._sample:sample",
    "compare": "erta_framework.cli._compare:compare",
    "calibrate": "erta_framework.cli._calibrate:calibrate",
    "plan": "erta_framework.cli._plan:plan",
    "explain": "erta_framework.cli._explain:explain",
    "inspect": "erta_framework.cli._inspect:inspect",
    "policies": "erta_framework.cli._policies:list_policies",
    "profile": "erta_framework.cli._profile:profile_app",
    "schedule": "erta_framework.cli._convert:schedule_app",
}
"""The commands of this distribution, in the order of `--help`."""
USAGE_ERRORS = (ConfigError, InputError, OSError)
"""What the caller gave was wrong (exit status 2); any other `ErtaError` exits with 1."""
ELSEWHERE = {
    "bench": "erta bench is in the distribution erta-bench, which is not installed; "
    "pip install erta-bench, or in a checkout: pip install -e bench"
}
"""Commands of ours that come with another distribution, and how to get them."""
PASS_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


class ErtaGroup(CatalogueGroup):
    """Prints errors as one red message with their notes; `--debug`, anywhere, shows tracebacks."""

    own = OWN

    def catalogue(self) -> Catalogue:
        from erta_framework.plugins import commands

        return commands()

    def find_commands(self) -> None:
        super().find_commands()
        for name, message in ELSEWHERE.items():
            if name not in self.commands:
                self.add_command(make_pointer(name, message))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["erta.debug"] = "--debug" in args
        return super().parse_args(ctx, [arg for arg in args if arg != "--debug"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        hidden = {entry.name: entry for entry in self.catalogue().hidden()}
        if args[0] in hidden and args[0] not in self.list_commands(ctx):
            entry = hidden[args[0]]
            raise InputError(
                f"erta {entry.name} comes from {entry.distribution}, which ERTA_PLUGINS="
                f"{os.environ.get('ERTA_PLUGINS', '')} does not allow"
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = partial(show_warning, warnings.showwarning)
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            for note in getattr(error, "__notes__", ()):
                typer.echo(escape_text(note), err=True)
            raise
        except ModuleNotFoundError as error:
            extra = None if error.name is None else find_extra(error.name)
            if ctx.meta["erta.debug"] or isinstance(error, ErtaError) or extra is None:
                raise
            print_error(
                f"this needs {error.name}, which is not installed; pip install "
                f'"erta-framework[{extra}]"'
            )
            raise typer.Exit(1) from error
        except (ErtaError, OSError) as error:
            if ctx.meta["erta.debug"] or isinstance(error, BrokenPipeError):
                raise  # typer ends quietly where the reader of a pipe has gone
            print_error(error)
            raise typer.Exit(2 if isinstance(error, USAGE_ERRORS) else 1) from error


def make_pointer(name: str, message: str) -> TyperCommand:
    """A command, left out of the list, that only says how to get the real one."""

    def point() -> None:
        typer.echo(message, err=True)
        raise typer.Exit(2)

    return TyperCommand(
        name, callback=point, hidden=True, add_help_option=False, context_settings=PASS_ON
    )


def show_warning(
    otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any
) -> None:
    """A warning of ours as one line, without the line of our code; others as Python shows them."""
    if issubclass(category, UnusedWarning):
        console = make_console(stderr=True)
        console.print(f"warning: {message}", style="yellow", soft_wrap=True)
        return
    otherwise(message, category, *place)


def print_error(error: BaseException | str) -> None:
    """One red message on standard error: what happened, where, and where to see more."""
    console = make_console(stderr=True)
    console.print(f"error: {error}", style="bold red", soft_wrap=True)
    for note in getattr(error, "__notes__", ()):
        console.print(f"  {note}", style="red", soft_wrap=True)
    console.print("add --debug to see the traceback", style="dim", soft_wrap=True)
