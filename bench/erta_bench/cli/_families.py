"""The command `erta bench families`; diffusers is imported when it runs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from erta_bench.cli import _options as options
from erta_framework.console import make_console
from erta_framework.errors import InputError


def families_command(
    family: Annotated[list[str] | None, typer.Option(help="Only this family; repeatable.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=6, help="Steps a run.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a cell may take.")] = 120.0,
    json: options.Json = None,
    update: Annotated[
        bool, typer.Option("--update", help="Keep the file's rows of other families and methods.")
    ] = False,
) -> None:
    """Which caches work on which diffusers pipelines: ours, diffusers' own and cache-dit.

    Every method runs on every tiny pipeline in a process of its own. `works`: the output differs
    from the uncached run and layers were really skipped, counted inside the network; `no-effect`:
    one of the two is not so; `error`: it raised.
    """
    if find_spec("diffusers") is None:
        raise InputError(
            "erta bench families needs diffusers: pip install 'erta-framework[diffusers]'"
        )
    if update and (json is None or not json.is_file()):
        raise InputError(f"--update needs a file that exists, --json is {json}")
    from erta_bench.families import compare_families, update_rows

    bench = compare_families(
        family or (), method or (), steps=steps, timeout=timeout, console=make_console(stderr=True)
    )
    if update and json is not None:
        bench = update_rows(bench, json)
    bench.show(path=json)
    if any(row["status"] == "not installed" for row in bench.rows):
        typer.echo(
            "cache-dit is not installed, so its rows hold no result; "
            "`pip install cache-dit` (or `pip install --no-deps cache-dit`) and run again"
        )
