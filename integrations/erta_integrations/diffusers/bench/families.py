"""Every method on every tiny pipeline, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.progress import track

from erta_framework.bench.report import Bench, Row, versions
from erta_framework.errors import InputError, suggestion
from erta_integrations.diffusers.bench.cell import measured, row
from erta_integrations.diffusers.bench.isolated import GoneError, isolated
from erta_integrations.diffusers.bench.methods import METHODS
from erta_integrations.diffusers.tiny import FAMILIES

COLUMNS = {
    "family": "family",
    "method": "method",
    "status": "status",
    "real_calls": "layers run",
    "full_calls": "of",
    "work": "work",
    "detail": "detail",
}
Measure = Callable[[str, str, int], Row]


def families(
    names: Sequence[str] = (),
    methods: Sequence[str] = (),
    *,
    steps: int = 8,
    timeout: float = 120.0,
    console: Console | None = None,
    measure: Measure = measured,
) -> Bench:
    """Run methods on families, each pair in a process of its own.

    Args:
        names: Families; all when empty.
        methods: Methods; all when empty.
        steps: Steps a run.
        timeout: Seconds a pair may take.
        console: Where to show a progress bar; None shows none.
        measure: What measures a pair; importable by name.

    Returns:
        Rows `family, method, status, real_calls, full_calls, work, detail`, where status is
        `works`, `no-effect`, `error` or `not installed`, the calls are runs of the networks'
        linear and convolution layers with and without the method, and `work` is the share of
        their output elements that was computed.

    Raises:
        InputError: There is no such family or method.

    Example:
        >>> bench = families(["flux"], ["erta skip_policy"])  # doctest: +SKIP
        >>> bench.rows[0]["status"]  # doctest: +SKIP
        'works'
    """
    names = chosen(names, FAMILIES, "family")
    methods = chosen(methods, METHODS, "method")
    pairs = [(name, method) for name in names for method in methods]
    quiet = console or Console(quiet=True)
    rows = [
        one(name, method, steps, timeout, measure)
        for name, method in track(pairs, "caches on families", console=quiet, transient=True)
    ]
    spelled = "".join(f" --family {name}" for name in names if len(names) < len(FAMILIES))
    spelled += "".join(f' --method "{m}"' for m in methods if len(methods) < len(METHODS))
    return Bench(
        f"erta bench families{spelled} --steps {steps}",
        rows,
        COLUMNS,
        {"steps": steps, "timeout_seconds": timeout},
        section="family",
        versions={**versions(), **rival_versions()},
    )


def chosen(names: Sequence[str], known: Iterable[str], kind: str) -> list[str]:
    """The names, or all that are known.

    Raises:
        InputError: A name is not known.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"no {kind} {name!r}; {suggestion(name, known)}")
    return list(dict.fromkeys(names)) or known


def one(name: str, method: str, steps: int, timeout: float, measure: Measure) -> Row:
    """One pair, whatever happens to its process."""
    if not METHODS[method].installed:
        package = METHODS[method].package.replace("_", "-")
        return row(name, method, "not installed", f"pip install {package}")
    try:
        found: Row = isolated(measure, name, method, steps, timeout=timeout)
    except GoneError as error:
        return row(name, method, "error", str(error))
    return found


def rival_versions() -> dict[str, str]:
    """The version of cache-dit, where it is installed."""
    try:
        return {"cache-dit": version("cache-dit")}
    except PackageNotFoundError:
        return {}
