"""Joins records: of other rows, of other seed sets, and of other numbers of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erta_bench.comparison._leaders import TO_EXACT
from erta_bench.comparison._peers import list_peers
from erta_bench.comparison._pooling import pool_rows
from erta_bench.setting import SEEDS_APART
from erta_framework.errors import InputError

Record = Mapping[str, Any]

OF_ROWS = ("calibration_samples",)
"""Settings that tell of the first row that calibrates, not of the run."""
AGREE = 0.01
"""Full runs of the same seeds are this near to one another, in dB to the exact solution."""


def join_records(records: Sequence[Record]) -> dict[str, Any]:
    """Join records of other rows, then of other seed sets, then of other numbers of calls.

    At each number of calls, records of the same seeds have other rows, and those of other seeds
    together the same rows. Each row keeps its speed-up, which is relative to the full run beside
    which it was measured. All full runs of the same seeds sample the same, so only the first is
    kept.

    Raises:
        InputError: They are not of the same model, samples and versions, or share what they must
            not share; or their full runs differ; or a run was stopped.
    """
    for record in records:
        require_joinable(record)
    runs: dict[tuple[int, tuple[int, ...]], list[Record]] = {}
    for record in records:
        for budget in list_budgets(record):
            key = budget, tuple(list_seeds(record))
            runs.setdefault(key, []).append(select_budget(record, budget))
    groups: dict[int, list[Record]] = {}
    for (budget, _), run in runs.items():
        groups.setdefault(budget, []).append(join_rows(run))
    found = join_budgets([join_seed_sets(group) for group in groups.values()])
    command = "; ".join(record["command"] for record in records)
    return {**found, "settings": drop_unshared(found["settings"], records), "command": command}


def join_rows(records: Sequence[Record]) -> dict[str, Any]:
    """Join records that differ in their rows alone, in the order in which one run has them.

    Raises:
        InputError: They differ in more, share rows, or their full runs do not end the same.
    """
    first, *others = records
    rows = list(first["rows"])
    for other in others:
        full, *rest = other["rows"]
        require_same(first, other)
        require_same_run(rows[0], full)
        if shared := {row["name"] for row in rest} & {row["name"] for row in rows}:
            raise InputError(
                f"the rows {', '.join(sorted(shared))} are in several records at "
                f"{rest[0]['budget']} calls of the same seeds; give each once"
            )
        rows += rest
    return {**first, "rows": order_rows(rows), "settings": join_settings(records)}


def order_rows(rows: Sequence[Record]) -> list[Record]:
    """The full run, then the rows as one run has them: most calls first, ours before peers."""
    full, *others = rows
    places = {peer.name: place for place, peer in enumerate(list_peers())}
    last = len(places)  # for rows of `--policy`
    return [full, *sorted(others, key=lambda r: (-r["budget"], places.get(r["name"], last)))]


def require_same_run(one: Record, other: Record) -> None:
    """Refuse full runs of the same seeds that are not the same samples.

    Raises:
        InputError: Names both numbers.
    """
    if one["prompts"] != other["prompts"]:
        raise InputError(
            f"the records have {one['prompts']} and {other['prompts']} samples a seed set; join "
            "rows that were measured on the same samples"
        )
    mine, theirs = one.get(TO_EXACT.mean), other.get(TO_EXACT.mean)
    if mine is None or theirs is None or abs(mine - theirs) > AGREE:
        raise InputError(
            f"the full runs of the same seeds are {mine} and {theirs} dB from the exact solution; "
            "measure the rows again with the same code, on the same machine"
        )


def join_budgets(records: Sequence[Record]) -> dict[str, Any]:
    """Join records of one number of calls each, most calls first.

    Raises:
        InputError: They differ in more, or their full runs do not end the same.
    """
    first, *others = records
    rows = list(first["rows"])
    for other in others:
        full, *rest = other["rows"]
        require_same(first, other)
        if full["seeds"] != rows[0]["seeds"]:
            raise InputError(
                f"the records have {rows[0]['seeds']} and {full['seeds']} seed sets at "
                f"{rows[-1]['budget']} and {rest[0]['budget']} calls; join as many at each"
            )
        require_same_run(rows[0], full)
        rows += rest
    return {**first, "rows": order_rows(rows), "settings": join_settings(records)}


def require_joinable(record: Record) -> None:
    """Refuse what cannot be joined.

    Raises:
        InputError: Rows have no kind, there is none, or the run was stopped.
    """
    if any("kind" not in row for row in record["rows"]):
        raise InputError(
            f"the record of `{record['command']}` has rows without a kind; join records that "
            "`erta bench peers --json` wrote"
        )
    if not list_budgets(record):
        raise InputError(f"the record of `{record['command']}` has no row beside the full run")
    if unfinished := record["settings"].get("unfinished"):
        raise InputError(
            f"the run of `{record['command']}` was stopped: {unfinished}; measure it to its end"
        )


def require_same(one: Record, other: Record, but: Sequence[str] = ()) -> None:
    """Refuse records of different settings or versions.

    Args:
        one: A record.
        other: Another one.
        but: Settings that may differ; the measured error of the solution always may, and what
            tells of one row alone.

    Raises:
        InputError: Says which differ.
    """
    free = {*but, *OF_ROWS, "solution_psnr"}
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
        raise InputError(
            f"some records share seeds at {first['rows'][1]['budget']} calls, and not all; join "
            f"rows of the same seeds, or runs from other seeds, {SEEDS_APART} apart"
        )
    for other in others:
        names = [[(row["name"], row["budget"]) for row in rec["rows"]] for rec in (first, other)]
        if names[0] != names[1] or first["rows"][0]["prompts"] != other["rows"][0]["prompts"]:
            raise InputError("runs of different seed sets have other rows or numbers of samples")
    rows = [pool_rows(same) for same in zip(*(r["rows"] for r in ordered), strict=True)]
    return {**first, "rows": rows, "settings": join_settings(ordered)}


def join_settings(records: Sequence[Record]) -> dict[str, Any]:
    """The settings of the first record, with the least exact solution of all."""
    settings = [record["settings"] for record in records]
    known = [each["solution_psnr"] for each in settings if "solution_psnr" in each]
    return {**settings[0], **({"solution_psnr": min(known)} if known else {})}


def drop_unshared(settings: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Settings without those of `OF_ROWS` that differ between records: of all rows, none holds."""
    shared = {
        key for key in OF_ROWS if len({record["settings"].get(key) for record in records}) == 1
    }
    return {key: value for key, value in settings.items() if key not in OF_ROWS or key in shared}


def list_budgets(record: Record) -> list[int]:
    """The numbers of calls of a record."""
    return list(dict.fromkeys(row["budget"] for row in record["rows"] if row["budget"]))


def select_budget(record: Record, budget: int) -> Record:
    """The part of a record at one number of calls, with its full run."""
    full, *rows = record["rows"]
    return {**record, "rows": [full, *(row for row in rows if row["budget"] == budget)]}


def list_seeds(record: Record) -> list[int]:
    """First seeds of the seed sets of a record."""
    first = int(record["settings"].get("first_seed", 0))
    return [first + number * SEEDS_APART for number in range(record["rows"][0]["seeds"])]
