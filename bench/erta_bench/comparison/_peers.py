"""Our methods, published methods, recombinations and plain solvers, compared with one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from erta_bench.comparison._bench import compare_contenders
from erta_bench.comparison._choice import choose_contenders
from erta_bench.comparison._contender import Contender, own, plain
from erta_bench.comparison._leaders import KINDS
from erta_bench.comparison.contenders import CONTENDERS, EXACT, LEARNED, MULTISTEP, SCHEDULE
from erta_bench.comparison.inside import COMPOSED, MODULES, PLANS, SEARCHED
from erta_bench.core import Bench
from erta_bench.setting import Setting
from erta_framework.errors import InputError, suggest

COLUMNS = {
    "budget": "calls",
    "kind": "kind",
    "name": "row",
    "status": "status",
    "calls": "made",
    "work": "work",
    "processor_efficiency": "eff.",
    "psnr_fine_mean": "exact",
    "psnr_fine_std": "std",
    "psnr_fine_worst": "worst",
    "psnr_mean": "full",
    "psnr_worst": "worst",
    "right": "right",
}
AS_PUBLISHED = (
    "ERTACache",
    "MeanCache A",
    "MeanCache C",
    "EasyCache",
    "TeaCache",
    "TeaCache, block input",
    "MagCache",
    "TaylorSeer, whole output",
    "HiCache, whole output",
    "Spectrum, whole output",
    "Spectrum, whole output, free mean",
    "FreqCa, whole output",
    "FORA, whole output",
    "FBCache",
    "DiCache",
    "SenCache",
    "PromptTea, fixed threshold",
    "LFCache, last full",
    "SeaCache, latents",
)
"""Published policies on whole outputs and block stacks, in the form that does best on the reference
model at 25 or 17 calls."""
RECOMBINED = (
    "uniform reuse",
    "uniform + line",
    "ERTACache steps + line",
    "ERTACache steps + parabola",
    "MeanCache steps + line",
    "BudCache search + line",
    "LeMiCa's steps + line",
    "first-block rule + line",
    *COMPOSED,
)
OURS = (
    "fitted reuse, exact, searched steps",
    "fitted reuse, exact, multistep plan",
    "fitted reuse, searched steps",
    "fitted reuse, multistep plan",
    "fitted reuse, ERTACache steps",
    "multistep plan + line",
    "multistep plan + parabola",
    "planned steps for a line",
    "planned steps, reuse",
    "no profile: even steps + line",
    "no profile: steps counted from the end + line",
)
ORACLE = own("fitted to what is measured, exact", {"fitted": {"profile": EXACT}}, oracle=True)
"""Our weights, refined end to end on the measured samples: what better calibration could bring."""
SOLVERS = {"euler": "Euler", "ab2": "AB2", "unipc": "UniPC"}
GRIDS = {"ERTACache's": SCHEDULE, "the multistep plan's": MULTISTEP}
"""Schedules whose sigmas plain solvers step on, to show what the schedule alone is worth."""


def list_peers() -> list[Contender]:
    """List the rows: plain steps, ours, what is fitted to the samples, peers, recombinations."""
    named = {contender.name: contender for contender in CONTENDERS}
    return [
        *(contender for contender in CONTENDERS if contender.group == "plain"),
        *(named[name] for name in OURS),
        ORACLE,
        *LEARNED,
        *(named[name] for name in (*AS_PUBLISHED, *SEARCHED, *MODULES, *PLANS)),
        *(contender for contender in CONTENDERS if contender.group == "other"),
        *(named[name] for name in RECOMBINED),
        *(
            plain(f"plain {called} on {whose} steps", solver, on=schedule)
            for whose, schedule in GRIDS.items()
            for solver, called in SOLVERS.items()
        ),
    ]


def choose_peers(
    rows: Sequence[str] = (), kinds: Sequence[str] = (), step_level: bool = False
) -> list[Contender]:
    """The rows of these names, or with these policies, and all rows of these kinds.

    Args:
        rows: Names of rows, or of policies in them.
        kinds: Kinds of rows. Without names and kinds, all rows.
        step_level: Leave out rows of kinds that work inside the network, and other projects'
            caches, most of which do. Rows that are named stay.

    Raises:
        InputError: Nothing has such a name, or there is no such kind.

    Example:
        >>> [row.name for row in choose_peers(["plain Heun"], ["oracle"])]
        ['plain Heun', 'fitted to what is measured, exact']
    """
    peers = list_peers()
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"no kind of rows {kind!r}; {suggest(kind, KINDS)}")
    named = choose_contenders(rows, peers) if rows else []
    inside = {*MODULES, *PLANS, *COMPOSED}
    grouped = [
        row
        for row in peers
        if (row.kind in kinds or not (kinds or rows))
        and not (step_level and (row.rival or row.name in inside))
    ]
    listed = [row for row in peers if row in named or row in grouped]
    return [*listed, *(row for row in named if row not in peers)]


def compare_peers(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12, 8),
    scheduler: str = "",
    seeds: int = 3,
    seed: int = 0,
    rows: Sequence[str] = (),
    kinds: Sequence[str] = (),
    step_level: bool = False,
    console: Console | None = None,
    command: str = "peers",
    keep: Callable[[Bench], object] | None = None,
) -> Bench:
    """Measure all rows of `list_peers` at every number of calls.

    Args:
        setting: Model, samples and what else all rows share.
        calls: Network calls of each branch.
        scheduler: Scheduler of all but some plain rows; empty for the model's default.
        seeds: How often everything is repeated with other noise; calibrated and solved once.
        seed: First seed.
        rows: Names of rows, or of policies in them.
        kinds: Kinds of rows. Without names and kinds, all rows.
        step_level: Leave out what works inside the network, see `choose_peers`.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.
        keep: Gets what was measured so far after each seed set, and where the run is stopped,
            marked as unfinished.

    Raises:
        InputError: What cannot be measured; see `erta_bench.setting.require_measurable`.
    """
    return compare_contenders(
        setting,
        choose_peers(rows, kinds, step_level),
        calls=calls,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        console=console,
        command=command,
        columns=COLUMNS,
        search_prompts=3,
        keep=keep,
    )
