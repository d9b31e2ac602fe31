"""`erta policies` and `erta explain`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from erta_framework.budgets import promise
from erta_framework.cli.app import app
from erta_framework.cli.common import Settings, console, read_settings, sampler_of
from erta_framework.errors import RegistryError
from erta_framework.plugins import HOOKS, PROJECT, Catalogue, Entry, Policy, policies


@app.command("policies")
def list_policies(
    hooks: Annotated[
        bool,
        typer.Option(help="Import each policy to list its hooks; without, metadata alone is read."),
    ] = True,
    combine: Annotated[
        bool,
        typer.Option("--combine", help="Show instead which policies can stand beside which."),
    ] = False,
) -> None:
    """List every installed policy: its distribution, version and hooks."""
    if combine:
        show_combinations()
        return
    catalogue = policies()
    table = Table(caption="installed is not active: a policy runs when a configuration lists it")
    table.add_column("policy", no_wrap=True)
    table.add_column("distribution", no_wrap=True)
    if hooks:
        table.add_column("hooks, and what it is", overflow="fold")
    entries = catalogue.entries()
    for entry in entries:
        described = [description(catalogue, entry)] if hooks else []
        table.add_row(entry.name, f"{entry.distribution} {entry.version}", *described)
    out = console()
    out.print(table)
    if not entries:
        out.print("no policies; is erta-framework installed, or does ERTA_PLUGINS limit it?")


def show_combinations() -> None:
    """The parts that policies play, and which of them cannot stand together, for each solver."""
    from erta_framework.compatibility import make_overview
    from erta_framework.testing import toy_profile

    found = make_overview(toy_profile)
    table = Table(caption="one `when`, and at most one of each other part, may be combined freely")
    for heading in ("part", "policy", *(driver.name for driver in found.drivers)):
        table.add_column(heading, no_wrap=heading in ("part", "policy"), overflow="fold")
    for role, name, served in found.rows():
        table.add_row(role.value, name, *("yes" if each else "no" for each in served))
    counts = [found.counts(driver) for driver in found.drivers]
    table.add_row("", "combinations", *(f"{allowed} of {made}" for allowed, made in counts))
    out = console()
    out.print(table)
    for names, where, reason in found.refused():
        out.print(f"not {' + '.join(names)} ({'; '.join(where)}): {reason}", markup=False)
    for name, reason in found.absent.items():
        out.print(f"not combined, {name}: {reason}", markup=False)


def description(catalogue: Catalogue, entry: Entry) -> Text:
    """Hooks and first line of the documentation; what went wrong where it cannot be imported."""
    try:
        cls: type[Policy] = catalogue.load(entry.name)
    except RegistryError as error:
        return Text(f"failed: {error}", style="red")
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    return Text(", ".join(hooks_of(cls))).append(f"\n{summary}", style="dim")


def hooks_of(cls: type[Policy]) -> tuple[str, ...]:
    """The hooks that a policy class implements; `("recipe",)` if it stands for other policies.

    Example:
        >>> hooks_of(Policy)
        ()
    """
    if cls.parts is not Policy.parts:
        return ("recipe",)
    return tuple(h for h in HOOKS if hasattr(getattr(cls, h, None), f"{PROJECT}_impl"))


@app.command()
def explain(settings: Settings = None) -> None:
    """Show what a configuration does: who answers which hook, in order. Nothing is sampled."""
    config = read_settings(settings)
    sampler = sampler_of(config, config.policies)
    sigmas = sampler.schedule.sigmas
    out = console()
    out.print(f"model     {config.model}", markup=False)
    out.print(f"solver    {config.solver!r}", markup=False, soft_wrap=True)
    out.print(f"guidance  {config.guidance!r}", markup=False, soft_wrap=True)
    out.print(f"schedule  {len(sigmas) - 1} steps, sigma {sigmas[0]:.4g} to {sigmas[-1]:.4g}")
    out.print(f"device    {sampler.device.type}, precision {config.precision}")
    out.print(sampler.loop.engine.explain(), markup=False, soft_wrap=True)
    cost = promise(config.policies, len(sigmas) - 1)
    if cost:
        out.print(f"cost      {cost}", markup=False, soft_wrap=True)
