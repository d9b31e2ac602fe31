"""The reference of the command line, made from the commands themselves."""

from __future__ import annotations

import inspect
from typing import Any

from tables.markdown import escape_cell, render_words


def load_cli() -> Any:
    """The `erta` command as click sees it, with the commands of installed distributions."""
    import typer

    from erta_framework.cli import app

    return load_below(typer.main.get_command(app))


def load_below(command: Any) -> Any:
    """A command with the installed ones below it imported, which `erta` does when one runs."""
    command = command.load() if hasattr(command, "load") else command
    command = command.load() if hasattr(command, "load") else command
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        command.commands[name] = load_below(command.commands[name])
    return command


def render_cli() -> str:
    """The help of every command."""
    return "\n\n".join(render_command(load_cli(), "erta", level=2))


def render_command(command: Any, path: str, level: int) -> list[str]:
    """Heading, usage, text and options of a command and of those below it."""
    shown = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    names = command.list_commands(None) if hasattr(command, "list_commands") else []
    below = {name: command.get_command(None, name) for name in names}
    usage = [path, *(["COMMAND"] if below else []), *map(format_argument, arguments), "[OPTIONS]"]
    rows = [
        [
            f"`{format_argument(p) if p in arguments else format_option(p)}`",
            escape_cell(p.help),
            format_default(p),
        ]
        for p in shown
    ]
    parts = [
        f"{'#' * level} `{path}`",
        inspect.cleandoc(command.help or ""),
        f"```text\n{' '.join(usage)}\n```",
        render_words(["", "Meaning", "Default"], rows) if rows else "",
    ]
    for name, sub in below.items():
        parts += render_command(sub, f"{path} {name}", level + 1)
    return [part for part in parts if part]


def format_argument(argument: Any) -> str:
    """How a positional argument is written."""
    return str(argument.metavar or f"{argument.name.upper()}{'...' * (argument.nargs != 1)}")


def format_option(option: Any) -> str:
    """How an option is written, with its other names and its opposite."""
    return ", ".join([*option.opts, *option.secondary_opts])


def format_default(parameter: Any) -> str:
    """The default of an option, where it has one to show."""
    value = parameter.default
    if value is None or isinstance(value, bool) or callable(value) or not parameter.show_default:
        return ""
    return f"`{value}`"
