"""Joins records: runs at different numbers of calls, and runs of different seed sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from erta_bench.setting import SEEDS_APART
from erta_framework.errors import InputError

Record = Mapping[str, Any]

SPREADS = {
    "psnr_std": "psnr_mean",
    "ssim_std": "ssim_mean",
    "psnr_fine_std": "psnr_fine_mean",
    "psnr_sets_std": "psnr_mean",
}
"""Deviations, and the means that they are about."""
WORST = ("psnr_worst", "psnr_fine_worst", "solution_psnr")
SUMMED = ("seeds",)
SAME = ("steps", "budget", "prompts", "calibration_calls", "solving_calls", "bytes_held")
"""Numbers that are not averaged over seed sets."""


def join_records(records: Sequence[Record]) -> dict[str, Any]:
    """Join records of runs at different numbers of calls, or of different seed sets.

    Runs of different seed sets must have the same rows and as many samples. Of runs at different
    numbers of calls each has its own full run, which its speed-ups are relative to. All full runs
    sample the same, so only the first is kept.

    Raises:
        InputError: They are not of the same model, samples and versions, or share a number of
            calls; or a run was stopped.
    """
    for record in records:
        require_joinable(record)
    groups: dict[frozenset[int], list[Record]] = {}
    for record in records:
        budgets = frozenset(row["budget"] for row in record["rows"] if row["budget"])
        groups.setdefault(budgets, []).append(record)
    first, *others = [join_seed_sets(group) for group in groups.values()]
    rows = list(first["rows"])
    for other in others:
        full, *rest = other["rows"]
        require_same(first, other)
        if (full["prompts"], full["seeds"]) != (rows[0]["prompts"], rows[0]["seeds"]):
            raise InputError("the records have different numbers of samples or seed sets")
        shared = {row["budget"] for row in rest} & {row["budget"] for row in rows}
        if shared:
            raise InputError(f"the records share the numbers of calls {sorted(shared)}")
        rows += rest
    ordered = [rows[0], *sorted(rows[1:], key=lambda row: -row["budget"])]
    command = "; ".join(record["command"] for record in records)
    return {**first, "rows": ordered, "command": command}


def require_joinable(record: Record) -> None:
    """Refuse what cannot be joined.

    Raises:
        InputError: Rows have no kind, or the run was stopped.
    """
    if any("kind" not in row for row in record["rows"]):
        raise InputError(
            f"the record of `{record['command']}` has rows without a kind; join records that "
            "`erta bench peers --json` wrote"
        )
    if unfinished := record["settings"].get("unfinished"):
        raise InputError(
            f"the run of `{record['command']}` was stopped: {unfinished}; measure it to its end"
        )


def require_same(one: Record, other: Record, but: Sequence[str] = ()) -> None:
    """Refuse records of different settings or versions.

    Args:
        one: A record.
        other: Another one.
        but: Settings that may differ; the measured error of the solution always may.

    Raises:
        InputError: Says which differ.
    """
    free = {*but, "solution_psnr"}
    for what in ("settings", "versions"):
        mine, theirs = (
            {key: value for key, value in record[what].items() if key not in free}
            for record in (one, other)
        )
        if mine != theirs:
            raise InputError(
                f"the records differ in their {what}, {one[what]} and {other[what]}; "
                "join runs of the same model, samples and packages"
            )


def join_seed_sets(records: Sequence[Record]) -> dict[str, Any]:
    """Join records that differ in their seeds alone.

    Raises:
        InputError: They differ in more, or share seeds.
    """
    ordered = sorted(records, key=lambda record: int(record["settings"].get("first_seed", 0)))
    first, *others = ordered
    if not others:
        return dict(first)
    for other in others:
        require_same(first, other, ["first_seed"])
    seeds = [seed for record in ordered for seed in list_seeds(record)]
    if len(set(seeds)) < len(seeds):
        budgets = sorted({row["budget"] for row in first["rows"] if row["budget"]})
        raise InputError(
            f"the records share the numbers of calls {budgets} and seeds; join runs at other "
            f"numbers of calls, or from other seeds, {SEEDS_APART} apart"
        )
    for other in others:
        names = [[(row["name"], row["budget"]) for row in rec["rows"]] for rec in (first, other)]
        if names[0] != names[1] or first["rows"][0]["prompts"] != other["rows"][0]["prompts"]:
            raise InputError("runs of different seed sets have other rows or numbers of samples")
    rows = [pool_rows(same) for same in zip(*(r["rows"] for r in ordered), strict=True)]
    known = [r["settings"]["solution_psnr"] for r in ordered if "solution_psnr" in r["settings"]]
    settings = {**first["settings"], **({"solution_psnr": min(known)} if known else {})}
    return {**first, "rows": rows, "settings": settings}


def list_seeds(record: Record) -> list[int]:
    """First seeds of the seed sets of a record."""
    first = int(record["settings"].get("first_seed", 0))
    return [first + number * SEEDS_APART for number in range(record["rows"][0]["seeds"])]


def pool_rows(rows: Sequence[Record]) -> dict[str, Any]:
    """One row of the same contender in several runs, as if it had been measured in one."""
    measured = [row for row in rows if row.get("seeds")]
    if len(measured) < len(rows):  # it ran in some only: that is no measurement of all seed sets
        return dict(next(row for row in rows if not row.get("seeds")))
    weights = [float(row["seeds"]) for row in rows]
    found = dict(max(rows, key=lambda row: row["status"] != "measured"))  # off budget in any
    for key in found:
        if key in SAME or not all(is_number(row.get(key)) for row in rows):
            continue
        values: list[float] = [row[key] for row in rows]
        if key in SUMMED:
            found[key] = sum(values)
        elif key in WORST:
            found[key] = min(values)
        elif key in SPREADS:
            found[key] = pool_spread(values, [row[SPREADS[key]] for row in rows], weights)
        elif len(set(values)) > 1:  # a whole number stays one
            found[key] = average(values, weights)
    return found


def pool_spread(
    spreads: Sequence[float], means: Sequence[float], weights: Sequence[float]
) -> float:
    """Deviation of all samples, from those of parts about their own means.

    Example:
        >>> pool_spread([0.0, 0.0], [1.0, 3.0], [1.0, 1.0])
        1.0
    """
    squares = [spread**2 + mean**2 for spread, mean in zip(spreads, means, strict=True)]
    return math.sqrt(max(0.0, average(squares, weights) - average(means, weights) ** 2))


def average(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted mean."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def is_number(value: object) -> bool:
    """Whether a value can be averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool)
