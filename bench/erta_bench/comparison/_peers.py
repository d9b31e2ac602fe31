"""Our methods, published methods, recombinations and plain solvers, compared with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from erta_bench.comparison._bench import compare_contenders
from erta_bench.comparison._choice import choose_contenders
from erta_bench.comparison._contender import Contender, own, plain
from erta_bench.comparison.contenders import CONTENDERS, FITTED, LEARNED, MULTISTEP, SCHEDULE
from erta_bench.comparison.inside import COMPOSED, MODULES, PLANS, SEARCHED
from erta_bench.core import Bench
from erta_bench.setting import Setting
from erta_framework.errors import InputError

COLUMNS = {
    "budget": "calls",
    "kind": "kind",
    "name": "row",
    "status": "status",
    "calls": "made",
    "work": "work",
    "processor_efficiency": "eff.",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
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
    "fitted reuse, multistep plan",
    "fitted reuse, ERTACache steps",
    "multistep plan + line",
    "multistep plan + parabola",
    "planned steps for a line",
    "planned steps, reuse",
)
ORACLE = own("oracle, fitted to what is measured", {"fitted": {"profile": FITTED}}, oracle=True)


SOLVERS = {"euler": "Euler", "ab2": "AB2", "unipc": "UniPC"}
GRIDS = {"ERTACache's": SCHEDULE, "the multistep plan's": MULTISTEP}
"""Schedules whose sigmas plain solvers step on, to show what the schedule alone is worth."""


def list_peers() -> list[Contender]:
    """List the rows: plain steps, ours, the oracle, learned solvers, peers, and recombinations."""
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


def compare_peers(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12, 8),
    scheduler: str = "",
    seeds: int = 3,
    seed: int = 0,
    rows: Sequence[str] = (),
    console: Console | None = None,
    command: str = "peers",
) -> Bench:
    """Measure all rows of `list_peers` at every number of calls.

    Args:
        setting: Model, samples and what else all rows share.
        calls: Network calls of each branch.
        scheduler: Scheduler of all but some plain rows; empty for the model's default.
        seeds: How often everything is repeated with other noise; calibrated and solved once.
        seed: First seed.
        rows: Names of rows, or of policies in them; empty means all.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: What cannot be measured; see `erta_bench.setting.require_measurable`.
    """
    return compare_contenders(
        setting,
        choose_contenders(rows, list_peers()),
        calls=calls,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        console=console,
        command=command,
        columns=COLUMNS,
        search_prompts=3,
    )


def join_records(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join records of runs at different numbers of calls.

    Each record has its own full run, which its speed-ups are relative to. All full runs sample the
    same, so only the first is kept.

    Raises:
        InputError: They are not of the same model, samples and versions, or share a number of
            calls.
    """
    for record in records:
        if any("kind" not in row for row in record["rows"]):
            raise InputError(
                f"the record of `{record['command']}` has rows without a kind; join records that "
                "`erta bench peers --json` wrote"
            )
    first, *others = records
    rows = list(first["rows"])
    for other in others:
        full, *rest = other["rows"]
        for what in ("settings", "versions"):
            if other[what] != first[what]:
                raise InputError(
                    f"the records differ in their {what}, {first[what]} and {other[what]}; "
                    "join runs of the same model, samples and packages"
                )
        if (full["prompts"], full["seeds"]) != (rows[0]["prompts"], rows[0]["seeds"]):
            raise InputError("the records have different numbers of samples or seed sets")
        shared = {row["budget"] for row in rest} & {row["budget"] for row in rows}
        if shared:
            raise InputError(f"the records share the numbers of calls {sorted(shared)}")
        rows += rest
    ordered = [rows[0], *sorted(rows[1:], key=lambda row: -row["budget"])]
    command = "; ".join(record["command"] for record in records)
    return {**first, "rows": ordered, "command": command}
