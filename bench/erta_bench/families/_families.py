"""Every method on every tiny pipeline, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from erta_bench.core import Bench, Row
from erta_bench.families._cell import make_row, measure_cell
from erta_bench.families._isolated import GoneError, run_isolated
from erta_bench.families._methods import METHODS
from erta_bench.families._places import judge_places
from erta_bench.other_caches import read_rival_versions
from erta_framework.environment import collect_versions
from erta_framework.errors import InputError, suggest
from tiny_pipelines import FAMILIES

COLUMNS = {
    "family": "family",
    "method": "method",
    "status": "status",
    "real_calls": "layers run",
    "full_calls": "of",
    "work": "work",
    "modules": "modules",
    "detail": "detail",
}
PAIR = ("family", "method")
Measure = Callable[[str, str, int], Row]
Judge = Callable[[str], str]


def compare_families(
    names: Sequence[str] = (),
    methods: Sequence[str] = (),
    *,
    steps: int = 8,
    timeout: float = 120.0,
    console: Console | None = None,
    measure: Measure = measure_cell,
    judge: Judge = judge_places,
) -> Bench:
    """Run methods on families, each pair in a process of its own.

    Args:
        names: Families; all when empty.
        methods: Methods; all when empty.
        steps: Steps a run.
        timeout: Seconds a pair may take.
        console: Where to show a progress bar; None shows none.
        measure: What measures a pair; importable by name.
        judge: What says whether the modules of a family can be reused; importable by name.

    Returns:
        Rows `family, method, status, real_calls, full_calls, work, detail`, where status is
        `works`, `no-effect`, `error` or `not installed`, the calls are runs of the networks'
        linear and convolution layers with and without the method, and `work` is the share of
        their output elements that was computed. `modules` is the same in all rows of a family:
        `exact` where every attention and MLP runs once a network call, or why not.

    Raises:
        InputError: There is no such family or method.

    Example:
        >>> bench = compare_families(["flux"], ["erta skip_policy"])  # doctest: +SKIP
        >>> bench.rows[0]["status"]  # doctest: +SKIP
        'works'
    """
    names = choose_names(names, FAMILIES, "family")
    methods = choose_names(methods, METHODS, "method")
    pairs = [(name, method) for name in names for method in methods]
    quiet = console or Console(quiet=True)
    modules = {name: judge_family(name, timeout, judge) for name in names}
    rows = [
        {**run_pair(name, method, steps, timeout, measure), "modules": modules[name]}
        for name, method in track(pairs, "caches on families", console=quiet, transient=True)
    ]
    return Bench(
        format_command(names, methods, steps),
        rows,
        COLUMNS,
        {"steps": steps, "timeout_seconds": timeout},
        section="family",
        versions={**collect_versions(), **read_rival_versions()},
    )


def format_command(names: Sequence[str], methods: Sequence[str], steps: int) -> str:
    """The command line that measures these families and methods."""
    found = "".join(f" --family {name}" for name in names if len(names) < len(FAMILIES))
    found += "".join(f' --method "{m}"' for m in methods if len(methods) < len(METHODS))
    return f"erta bench families{found} --steps {steps}"


def update_rows(bench: Bench, path: Path) -> Bench:
    """Add the rows that a file has of other families and methods.

    Args:
        bench: What was measured now; its rows replace those of the file.
        path: JSON file of an earlier benchmark.

    Raises:
        InputError: The file is of another machine, other versions or other settings; names the
            first difference, with the value of both.
    """
    earlier = json.loads(path.read_text(encoding="utf-8"))
    now = bench.record()
    for part in ("versions", "machine", "settings"):
        old, new = earlier[part], dict(now[part])  # type: ignore[call-overload]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise InputError(
                    f"{path} cannot be updated: its {part} have {key} {old.get(key)!r}, this run "
                    f"has {new.get(key)!r}; run all families again"
                )
    rows = {(row["family"], row["method"]): row for row in (*earlier["rows"], *bench.rows)}
    places = [(name, method) for name in FAMILIES for method in METHODS]
    kept = [rows[place] for place in places if place in rows]
    names, methods = (list(dict.fromkeys(str(row[key]) for row in kept)) for key in PAIR)
    steps = int(bench.settings["steps"])  # type: ignore[arg-type]
    return replace(bench, command=format_command(names, methods, steps), rows=kept)


def choose_names(names: Sequence[str], known: Iterable[str], kind: str) -> list[str]:
    """The names, or all that are known.

    Raises:
        InputError: A name is not known.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"no {kind} {name!r}; {suggest(name, known)}")
    return list(dict.fromkeys(names)) or known


def judge_family(name: str, timeout: float, judge: Judge) -> str:
    """What is said of the modules of a family, whatever happens to its process."""
    try:
        found: str = run_isolated(judge, name, timeout=timeout)
    except GoneError as error:
        return f"not known: {error}"
    return found


def run_pair(name: str, method: str, steps: int, timeout: float, measure: Measure) -> Row:
    """The row of one pair, whatever happens to its process."""
    if not METHODS[method].installed:
        package = METHODS[method].package.replace("_", "-")
        return make_row(name, method, "not installed", f"pip install {package}")
    try:
        found: Row = run_isolated(measure, name, method, steps, timeout=timeout)
    except GoneError as error:
        return make_row(name, method, "error", str(error))
    return found
