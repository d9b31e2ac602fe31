"""`erta policies`: what is installed, and what can stand together."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from erta_framework.console import make_console
from erta_framework.errors import RegistryError
from erta_framework.plugins import HOOKS, PROJECT, Catalogue, Entry, Policy, policies
from erta_framework.text import escape_line, escape_text, show_error


def list_policies(
    hooks: Annotated[
        bool,
        typer.Option(help="Import each policy to list its hooks; --no-hooks reads metadata only."),
    ] = True,
    combine: Annotated[
        bool,
        typer.Option("--combine", help="Show which policies can be combined instead."),
    ] = False,
) -> None:
    """List every installed policy: its distribution, version and hooks."""
    if combine:
        show_combinations()
        return
    catalogue = policies()
    table = Table(caption="installed is not active: a policy runs only if a configuration lists it")
    table.add_column("policy", no_wrap=True)
    table.add_column("distribution", no_wrap=True)
    if hooks:
        table.add_column("hooks, and what it is", overflow="fold")
    entries = catalogue.entries()
    for entry in entries:
        described = [describe_policy(catalogue, entry)] if hooks else []
        owner = escape_line(f"{entry.distribution} {entry.version}")
        table.add_row(escape_line(entry.name), owner, *described)
    out = make_console()
    out.print(table)
    if not entries:
        out.print("no policies; is erta-framework installed, or does ERTA_PLUGINS limit it?")


def show_combinations() -> None:
    """The parts that policies play, and which of them cannot stand together, for each solver."""
    from erta_framework.compatibility import make_overview
    from erta_framework.testing import toy_profile

    found = make_overview(toy_profile)
    table = Table(
        caption="a list may hold one policy of part `when` and at most one of each other part, "
        "except for the combinations below"
    )
    for heading in ("part", "policy", *(driver.name for driver in found.drivers)):
        table.add_column(heading, no_wrap=heading in ("part", "policy"), overflow="fold")
    for role, name, served in found.rows():
        table.add_row(role.value, name, *("yes" if each else "no" for each in served))
    counts = [found.counts(driver) for driver in found.drivers]
    table.add_row("", "combinations", *(f"{allowed} of {made}" for allowed, made in counts))
    out = make_console()
    out.print(table)
    for names, where, reason in found.refused():
        out.print(f"not {' + '.join(names)} ({'; '.join(where)}): {reason}")
    for name, reason in found.absent.items():
        out.print(f"not combined, {name}: {reason}")


def describe_policy(catalogue: Catalogue, entry: Entry) -> Text:
    """Hooks and first line of the documentation; what went wrong where it cannot be imported."""
    if not entry.own:  # so that it is known which one hangs
        typer.echo(escape_line(f"importing {entry}"), err=True)
    try:
        cls: type[Policy] = catalogue.load(entry.name)
        hooks, summary = list_hooks(cls), (cls.__doc__ or "").strip().partition("\n")[0]
    except RegistryError as error:
        return Text(escape_text(f"failed: {error}"), style="red")
    except Exception as error:  # a class of others may raise anything
        return Text(f"failed: {show_error(error)}", style="red")
    return Text(", ".join(hooks)).append(escape_text(f"\n{summary}"), style="dim")


def list_hooks(cls: type[Policy]) -> tuple[str, ...]:
    """The hooks that a policy class implements; `("recipe",)` if it stands for other policies.

    Example:
        >>> list_hooks(Policy)
        ()
    """
    if cls.parts is not Policy.parts:
        return ("recipe",)
    return tuple(h for h in HOOKS if hasattr(getattr(cls, h, None), f"{PROJECT}_impl"))
