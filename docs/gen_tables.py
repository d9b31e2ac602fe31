"""Tables of the documentation, made from the JSON files in `docs/data/` while the site is built.

As a hook of mkdocs it replaces comments such as `<!-- table:ablation -->` in a page; `SECTIONS`
lists them. A missing file fails the build, so no page can show an old or an invented number.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peer_tables import peers_section, peers_summary

DATA = Path(__file__).parent / "data"
COMMANDS = {
    "ablation": "erta bench ablation --json docs/data/ablation.json",
    "attach_overhead": "erta bench attach-overhead --json docs/data/attach_overhead.json",
    "batch": "erta bench batch --json docs/data/batch.json",
    "budgets": "erta bench budgets --json docs/data/budgets.json",
    "lambda": "erta bench lambda --json docs/data/lambda.json",
    "accuracy": "python -m erta_integrations.shapes_wan.check --json docs/data/accuracy.json",
    "accuracy_image": "python -m erta_integrations.shapes_image.check "
    "--json docs/data/accuracy_image.json",
    "families": "erta bench families --json docs/data/families.json",
    "fitted": "erta bench fitted --model mixture --part calls --part choices --part samples "
    "--part robust --part solvers --json docs/data/fitted.json",
    "fitted_robust": "erta bench fitted --part robust --samples 8 "
    "--json docs/data/fitted_robust.json",
    "fitted_25": "erta bench fitted --calls 25 --samples 8 --json docs/data/fitted_25.json",
    "fitted_17": "erta bench fitted --calls 17 --samples 8 --json docs/data/fitted_17.json",
    "fitted_12": "erta bench fitted --calls 12 --samples 8 --json docs/data/fitted_12.json",
    "fitted_choices": "erta bench fitted --part choices --samples 8 "
    "--json docs/data/fitted_choices.json",
    "fitted_unet": "erta bench fitted --model shapes-unet --calls 25 --calls 17 --calls 12 "
    "--calls 8 --json docs/data/fitted_unet.json",
    "overhead": "erta bench overhead --json docs/data/overhead.json",
    "pipeline": "erta bench pipeline --json docs/data/pipeline.json",
    "policies": "erta bench policies --json docs/data/policies.json",
    "peers": "erta bench peers --json docs/data/peers.json",
    "peersflux": "erta bench peers --model shapes-flux --json docs/data/peersflux.json",
    "peersunet": "erta bench peers --model shapes-unet --json docs/data/peersunet.json",
    "scale": "erta bench scale --json docs/data/scale.json",
    "simulate": "erta bench simulate --json docs/data/simulate.json",
}
LADDER = ("plain", "ablation", "recipe")
"""Groups of rows that every number of calls has; the others vary one choice at one number."""
EQUAL = 0.05
"""Differences in dB that are no difference when they are shown."""

Record = dict[str, Any]
Row = dict[str, Any]


class MissingDataError(Exception):
    """A table's JSON file is not there, or does not hold what a page shows of it."""


def load(name: str, folder: Path = DATA) -> Record:
    """The record of a benchmark.

    Raises:
        MissingDataError: There is none; names the command that writes it.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise MissingDataError(f"no {path.name} in docs/data; write it with `{COMMANDS[name]}`")
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if not record.get("rows"):
        raise MissingDataError(f"{path.name} holds no rows; write it with `{COMMANDS[name]}`")
    return record


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    rules = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, rules, *rows))


def caption(record: Record) -> str:
    """Where the numbers come from: command, machine, versions and date."""
    machine, versions = record["machine"], record["versions"]
    place = machine.get("accelerator") or machine.get("processor") or machine.get("system")
    cores = f", {machine['cores']} cores" if machine.get("cores") else ""
    software = ", ".join(f"{name} {held}" for name, held in versions.items())
    return f"`{record['command']}`, {record['date']}, {place}{cores}; {software}."


# ------------------------------------------------------------------------------- ablation
def budgets(record: Record) -> list[int]:
    """The numbers of network calls that were compared, largest first."""
    found = {row["budget"] for row in record["rows"] if row.get("budget") is not None}
    return sorted(found, reverse=True)


def ladder(record: Record) -> dict[str, dict[int, Row]]:
    """Rows of the ablation proper, by name and number of calls, in the order of the file.

    Raises:
        MissingDataError: A row lacks one of the numbers of calls.
    """
    found: dict[str, dict[int, Row]] = {}
    for row in record["rows"]:
        if row.get("budget") is not None and row["group"] in LADDER:
            found.setdefault(row["name"], {})[row["budget"]] = row
    for name, rows in found.items():
        if set(rows) != set(budgets(record)):
            raise MissingDataError(
                f"ablation.json has {name!r} at {sorted(rows)} calls, not at all of "
                f"{budgets(record)}; write it with `{COMMANDS['ablation']}`"
            )
    return found


def quality(row: Row) -> str:
    """PSNR with its deviation."""
    return f"{row['psnr_mean']:.1f} ± {row['psnr_std']:.1f}"


def ablation_table(record: Record) -> str:
    """PSNR of the ablation: a row a method, a column a number of calls; the best is bold."""
    rows, columns = ladder(record), budgets(record)
    best = {n: max(rows, key=lambda name: float(rows[name][n]["psnr_mean"])) for n in columns}
    lines = [
        [name, *(f"**{quality(r[n])}**" if best[n] == name else quality(r[n]) for n in columns)]
        for name, r in rows.items()
    ]
    steps = full_run(record)["steps"]
    return table(["", *(f"{n} of {steps} calls" for n in columns)], lines)


def full_run(record: Record) -> Row:
    """The row of the full run, the reference of all others."""
    (row,) = (row for row in record["rows"] if row.get("budget") is None)
    found: Row = row
    return found


def samples(record: Record) -> str:
    """How many samples stand behind a number."""
    row = full_run(record)
    sets = "seed set" if row["seeds"] == 1 else "seed sets"
    return f"{row['prompts']} held-out prompts × {row['seeds']} {sets}"


def ablation_summary(record: Record) -> str:
    """The table of the README, with where it comes from and what it says."""
    return "\n\n".join(
        [ablation_table(record), f"{samples(record)}; {caption(record)}", findings(record)]
    )


def ablation_section(record: Record) -> str:
    """Every row that was measured: the ablation, its times, and the open choices."""
    full = full_run(record)
    parts = [
        f"PSNR in dB against the full run of {full['steps']} steps from the same noise, mean and "
        f"standard deviation over {samples(record)}. Network calls are those of each branch; the "
        "speed-up is the ratio of processor seconds, which other load changes least.",
        ablation_table(record),
        caption(record),
    ]
    for budget in budgets(record):
        rows = [row for row in record["rows"] if row.get("budget") == budget]
        headings = ["", "calls made", "processor s", "speed-up", "PSNR", "SSIM"]
        shown = [full, *(row for row in rows if row["group"] in LADDER)]
        parts += [f"### {budget} network calls", table(headings, map(details, shown))]
        choices = [row for row in rows if row["group"] not in LADDER]
        if choices:
            parts += [
                f"The choices that are left open, at {budget} calls; each starts from the offline "
                "policy:",
                table(headings, map(details, choices)),
            ]
    return "\n\n".join(parts)


def details(row: Row) -> list[str]:
    """One row with its calls, times and both measures; the full run is the reference."""
    reference = row["psnr_mean"] is None
    return [
        row["name"],
        f"{row['calls']:g}",
        f"{row['processor_seconds']:.1f}",
        f"{row['processor_speedup']:.2f} x",
        "reference" if reference else quality(row),
        "" if reference else f"{row['ssim_mean']:.3f}",
    ]


def findings(record: Record) -> str:
    """What the numbers say, as sentences whose words follow from the numbers."""
    rows, columns = ladder(record), budgets(record)
    asked = [
        ("The offline policy against uniform reuse", "+ offline policy", "uniform"),
        ("Timestep adjustment, added to it", "+ timestep adjustment", "+ offline policy"),
        ("Error rectification, added to it", RECIPE, "+ offline policy"),
        ("The recipe as shipped against as many plain Euler steps", RECIPE, "plain Euler"),
        (
            "The recipe against as many plain second-order steps",
            RECIPE,
            "plain Adams-Bashforth 2",
        ),
    ]
    lines = []
    for title, one, other in asked:
        gaps = {n: gap(rows, one, other, n) for n in columns}
        numbers = " / ".join(f"{value:+.1f}" for value in gaps.values())
        lines.append(
            f"* {title}: **{verdict(gaps)}** ({numbers} dB at {listed(columns)} network calls)."
        )
    return "\n".join([*lines, *choice_findings(record)])


RECIPE = "ertacache (recipe default)"


def gap(rows: Mapping[str, Mapping[int, Row]], one: str, other: str, budget: int) -> float:
    """Mean PSNR of one row minus another's.

    Raises:
        MissingDataError: There is no such row.
    """
    for name in (one, other):
        if name not in rows:
            raise MissingDataError(f"ablation.json has no row {name!r}; it has {list(rows)}")
    return float(rows[one][budget]["psnr_mean"]) - float(rows[other][budget]["psnr_mean"])


def verdict(gaps: Mapping[int, float]) -> str:
    """Better, worse or neither, and where."""
    better = [budget for budget, value in gaps.items() if value > EQUAL]
    worse = [budget for budget, value in gaps.items() if value < -EQUAL]
    if not better and not worse:
        return "no difference"
    if len(better) == len(gaps) or len(worse) == len(gaps):
        return "better" if better else "worse"
    said = [("better", better), ("worse", worse)]
    return ", ".join(f"{word} at {listed(where)}" for word, where in said if where)


def listed(numbers: Sequence[int]) -> str:
    """Numbers in words: `25, 17 and 12`."""
    *first, last = (str(number) for number in numbers)
    return f"{', '.join(first)} and {last}" if first else last


def choice_findings(record: Record) -> list[str]:
    """The best and the worst of each open choice, beside the offline policy alone."""
    lines = []
    names = {"phi": "Forms of phi and network time", "correction": "Forms of the correction"}
    for group, title in names.items():
        rows = [row for row in record["rows"] if row["group"] == group]
        if not rows:
            raise MissingDataError(f"ablation.json has no rows of group {group!r}")
        budget = rows[0]["budget"]
        alone = ladder(record)["+ offline policy"][budget]["psnr_mean"]
        ranked = sorted(rows, key=lambda row: float(row["psnr_mean"]))
        lines.append(
            f"* {title}, at {budget} calls, where the offline policy alone has {alone:.1f} dB: "
            f"best {ranked[-1]['psnr_mean']:.1f} ({ranked[-1]['name']}), worst "
            f"{ranked[0]['psnr_mean']:.1f} ({ranked[0]['name']})."
        )
    return lines


# ------------------------------------------------------------------------------- pipeline
def pipeline_section(record: Record, own: Record) -> str:
    """The ablation through `WanPipeline`: a table a number of calls, and what it says."""
    rows = by_scheduler(record)
    count = next(row["prompts"] for row in record["rows"] if row["budget"] is None)
    parts = [f"{count} held-out prompts; {caption(record)}"]
    for budget in budgets(record):
        headings = [f"{budget} calls", "Euler", "own loop, same grid", "same bits", "UniPC"]
        names = dict.fromkeys(name for (_, n, name) in rows if n == budget)
        lines = [
            pipeline_line(name, rows["flow_euler", budget, name], rows["unipc", budget, name])
            for name in names
        ]
        parts.append(table(headings, lines))
    return "\n\n".join([*parts, pipeline_findings(record, own)])


PLAIN = "plain"
"""Stands for the plain steps of either scheduler."""


def by_scheduler(record: Record) -> dict[tuple[str, int, str], Row]:
    """Rows by scheduler, number of calls and name; both kinds of plain steps have one name.

    Raises:
        MissingDataError: One scheduler lacks a row that the other has.
    """
    found = {}
    for row in record["rows"]:
        if row["budget"] is not None:
            name = PLAIN if row["group"] == "plain" else row["name"]
            found[row["scheduler"], row["budget"], name] = row
    euler, unipc = (
        {key[1:] for key in found if key[0] == scheduler} for scheduler in ("flow_euler", "unipc")
    )
    if euler != unipc:
        raise MissingDataError(
            f"pipeline.json has other rows of flow_euler than of unipc ({sorted(euler ^ unipc)}); "
            f"write it with `{COMMANDS['pipeline']}`"
        )
    return found


def pipeline_line(name: str, euler: Row, unipc: Row) -> list[str]:
    """One row under both schedulers."""
    same = "yes" if euler["identical"] else f"within {euler['largest_difference']:.0e}"
    return [
        "plain steps" if name == PLAIN else name,
        quality(euler),
        f"{euler['own_psnr_mean']:.1f}",
        same,
        "refused" if unipc["status"] == "refused" else quality(unipc),
    ]


def pipeline_findings(record: Record, own: Record) -> str:
    """What the pipeline's numbers say beside those of the own loop, in words that follow."""
    rows = by_scheduler(record)
    euler = [row for row in record["rows"] if row["scheduler"] == "flow_euler"]
    same = [row for row in euler if row["identical"]]
    rest = [row for row in euler if not row["identical"]]
    apart = max((abs(r["psnr_mean"] - r["own_psnr_mean"]) for r in rest), default=0.0)
    furthest = max((row["largest_difference"] for row in rest), default=0.0)
    lines = [
        f"* The own loop on the pipeline's grid gives the same bits in {len(same)} of {len(euler)} "
        f"runs. The others ({', '.join(dict.fromkeys(r['name'] for r in rest)) or 'none'}) differ "
        f"by at most {furthest:.0e} in a pixel and {apart:.0e} dB in a mean."
    ]
    columns = budgets(record)
    theirs = ladder(own)
    asked = [
        ("The offline policy against uniform reuse", "+ offline policy", "uniform"),
        ("Error rectification, added to it", RECIPE, "+ offline policy"),
        ("The recipe against as many plain steps of the same scheduler", RECIPE, PLAIN),
    ]
    for title, one, other in asked:
        plain = "plain Euler" if other == PLAIN else other
        said = [("own loop, own grid", {n: gap(theirs, one, plain, n) for n in columns})]
        for scheduler, shown in (("flow_euler", "pipeline, Euler"), ("unipc", "pipeline, UniPC")):
            said.append(
                (
                    shown,
                    {
                        n: float(rows[scheduler, n, one]["psnr_mean"])
                        - float(rows[scheduler, n, other]["psnr_mean"])
                        for n in columns
                    },
                )
            )
        words = "; ".join(
            f"{where} **{verdict(gaps)}** ({' / '.join(f'{g:+.1f}' for g in gaps.values())} dB)"
            for where, gaps in said
        )
        lines.append(f"* {title}, at {listed(columns)} calls: {words}.")
    refused = [row for row in record["rows"] if row["status"] == "refused"]
    for detail, names in grouped((row["detail"], row["name"]) for row in refused).items():
        lines.append(f"* Refused under UniPC ({', '.join(names)}): `{detail}`.")
    return "\n".join(lines)


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Second values by first, each once, in order."""
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        known = found.setdefault(key, [])
        if value not in known:
            known.append(value)
    return found


# ------------------------------------------------------------------------------- policies
POLICY_GROUPS = {
    "plain": "Fewer steps",
    "policy": "Policies",
    "combination": "Combinations",
    "other": "Other projects' caches",
}
"""Groups of rows of the comparison, in the order of the page."""


def policies_section(record: Record) -> str:
    """All methods at equal network calls: a table a number of calls and group, and what it says."""
    full = full_run(record)
    headings = ["", "calls", "speed-up", "efficiency", "PSNR", "SSIM", "fine"]
    headings += ["work", "bytes held", "calibration"]
    parts = [
        f"PSNR in dB and SSIM against the full run of {full['steps']} steps, mean and deviation "
        f"over {samples(record)}. {caption(record)}",
        policies_findings(record),
    ]
    for budget in budgets(record):
        parts.append(f"### {budget} network calls")
        for group, name in POLICY_GROUPS.items():
            rows = [r for r in measured_rows(record, budget) if r["group"] == group]
            if rows:
                rows.sort(key=lambda row: -float(row["psnr_mean"]))
                parts += [f"**{name}**", table(headings, map(policies_line, rows))]
    odd = [row for row in record["rows"] if row["status"] != "measured"]
    if odd:
        lines = [
            [row["name"], str(row.get("budget") or ""), row["status"], cell(row.get("detail"))]
            for row in odd
        ]
        parts += [
            "### Not as asked for",
            left_aligned(["", "Calls", "Status", "Why"], lines),
        ]
    return "\n\n".join(parts)


def measured_rows(record: Record, budget: int) -> list[Row]:
    """The rows of a number of calls that have a quality."""
    rows: list[Row] = record["rows"]
    return [r for r in rows if r.get("budget") == budget and r.get("psnr_mean") is not None]


def policies_line(row: Row) -> list[str]:
    """One row of the comparison; the setting that was solved for stands under its name."""
    solved = f"<br>`{row['setting']}`" if row["setting"] else ""
    return [
        f"{row['name']}{solved}",
        f"{row['calls']:.4g}",
        f"{row['processor_speedup']:.2f} x",
        f"{row['processor_efficiency']:.2f}",
        quality(row),
        f"{row['ssim_mean']:.3f}",
        f"{row['psnr_fine_mean']:.1f}",
        f"{row['work']:.0%}",
        f"{row['bytes_held']:,}",
        str(row["calibration_calls"]),
    ]


def policies_findings(record: Record) -> str:
    """The best of each group at each number of calls, among rows that kept to it."""
    lines = []
    for budget in budgets(record):
        rows = [r for r in measured_rows(record, budget) if r["status"] == "measured"]
        best = {}
        for group in POLICY_GROUPS:
            own = [row for row in rows if row["group"] == group]
            if own:
                best[group] = max(own, key=lambda row: float(row["psnr_mean"]))
        said = "; ".join(
            f"{POLICY_GROUPS[group].lower()}: {row['name']} ({row['psnr_mean']:.1f} dB)"
            for group, row in best.items()
        )
        winner = max(best.values(), key=lambda row: float(row["psnr_mean"]))
        lines.append(f"* Best at {budget} calls: **{winner['name']}**. By group, {said}.")
        floor = float(best["plain"]["psnr_mean"])
        below = [r for r in rows if r["group"] != "plain" and float(r["psnr_mean"]) < floor - EQUAL]
        others = [row for row in rows if row["group"] != "plain"]
        lines.append(
            f"* Farther from the full run than the best fewer steps at {budget} calls: "
            f"{len(below)} of {len(others)} rows."
        )
    full = full_run(record)
    nearer = [
        f"{row['name']} at {row['budget']} ({row['psnr_fine_mean']:.1f} dB)"
        for budget in budgets(record)
        for row in measured_rows(record, budget)
        if row["psnr_fine_mean"] > full["psnr_fine_mean"] + EQUAL
    ]
    lines.append(
        f"* The full run itself is {full['psnr_fine_mean']:.1f} dB from nearly exact steps. Nearer "
        f"to them than it: {', '.join(nearer) or 'none'}."
    )
    return "\n".join(lines)


# -------------------------------------------------------------------- accuracy and overhead
def accuracy_section(record: Record) -> str:
    """What the reference model gets right."""
    lines = [
        [
            row["name"],
            f"{row['right']} of {row['samples']}",
            f"{row['accuracy']:.1%}",
            f"{row['target']:.0%}",
            f"{row['rendered']:.1%}",
            f"{row['chance']:.1%}",
        ]
        for row in record["rows"]
    ]
    headings = ["", "right", "share", "asked for", "of rendered videos", "by chance"]
    return f"{table(headings, lines)}\n\n{caption(record)}"


def image_accuracy_section(record: Record) -> str:
    """What the image models get right."""
    lines = [
        [
            f"{row['model']}: {row['name']}",
            f"{row['accuracy']:.1%}",
            f"{row['rendered']:.1%}",
            f"{row['chance']:.1%}",
        ]
        for row in record["rows"]
    ]
    headings = ["", "share", "of rendered images", "by chance"]
    return f"{table(headings, lines)}\n\n{caption(record)}"


def overhead_section(record: Record) -> str:
    """Microseconds of the engine a step, and the synchronisations of a static schedule."""
    timed = [row for row in record["rows"] if row.get("us_per_step") is not None]
    static = [row for row in record["rows"] if row.get("static_syncs") is not None]
    if not timed or not static:
        raise MissingDataError(
            f"overhead.json lacks us_per_step or static_syncs; write it with "
            f"`{COMMANDS['overhead']}`"
        )
    keys = ("us_per_step", "us_per_step_least", "us_per_step_bare")
    lines = [
        [str(row["policies"]), str(row["branches"]), *(f"{row[key]:.0f}" for key in keys)]
        for row in timed
    ]
    syncs = static[0]["static_syncs"]
    said = (
        "Microseconds a step; the median of the differences, and the difference of the fastest "
        f"runs. Values that a static schedule reads back from the device while sampling: {syncs}."
    )
    headings = ["policies", "branches", "engine adds", "fastest", "bare loop"]
    return "\n\n".join([table(headings, lines), said, caption(record)])


def attach_section(record: Record) -> str:
    """Microseconds a step that an attached engine adds to a pipeline whose network is free."""
    keys = ("us_per_step", "us_per_step_least", "us_per_step_processor", "us_per_step_plain")
    lines = [
        [
            row["pipeline"],
            str(row["policies"]),
            str(row["branches"]),
            *(f"{row[key]:.0f}" for key in keys),
        ]
        for row in record["rows"]
    ]
    headings = ["", "policies", "branches", "engine adds", "fastest", "processor", "plain pipeline"]
    said = (
        "Microseconds a step, opening and closing the request included: the median of the "
        "differences, the difference of the fastest requests, and the median in processor time."
    )
    return "\n\n".join([table(headings, lines), said, caption(record)])


# ------------------------------------------------------------------------------ many ranks
def scale_section(record: Record) -> str:
    """What a second process adds to a job, beside what the machine allows, and what is sent."""
    speed = [row for row in record["rows"] if row.get("efficiency") is not None]
    sent = [row for row in record["rows"] if row.get("collectives_per_step") is not None]
    settings = record["settings"]
    lines = [
        [
            str(row["processes"]),
            f"{row['machine_limit']:.2f}",
            f"{row['efficiency']:.2f} ({row['efficiency_least']:.2f} to "
            f"{row['efficiency_most']:.2f})",
            f"{row['efficiency_processor']:.2f}",
        ]
        for row in speed
    ]
    traffic = [
        [
            row["name"],
            f"{row['collectives_per_step']:g}",
            f"{row['bytes_per_step']:g}",
            str(row["collectives_at_the_start"]),
        ]
        for row in sent
    ]
    said = (
        f"Medians of {speed[0]['rounds']} rounds, with the least and the most. The load average "
        f"was {settings['load_before']:.1f} before and {settings['load_after']:.1f} after."
    )
    return "\n\n".join(
        [
            table(["processes", "machine limit", "efficiency", "in processor time"], lines),
            said,
            table(["two ranks", "collectives a step", "bytes a step", "at the start"], traffic),
            caption(record),
        ]
    )


def simulate_section(record: Record) -> str:
    """What a job of many ranks loses, waits for, and asks of the file system."""
    rows = record["rows"]
    course = [
        [
            row["name"],
            str(row["deaths"]),
            str(row["lost"]),
            str(row["made_twice"]),
            str(row["begun_again"]),
            "" if row["idle"] is None else f"{row['idle']:.0%}",
            "" if row["idle_fixed"] is None else f"{row['idle_fixed']:.0%}",
        ]
        for row in rows
    ]
    cost = [
        [
            row["name"],
            f"{row['operations']:.0f}",
            f"{row['mean_a_second']:.0f}",
            str(row["peak"]),
            str(row["largest_folder"]),
            f"{row['claim_ms']:.2f}",
            f"{row['claim_ms_p99']:.0f}",
        ]
        for row in rows
    ]
    headings = ["", "deaths", "lost", "made twice", "begun again", "idle", "idle, fixed parts"]
    files = ["", "a sample", "mean a second", "most in a second", "largest folder"]
    return "\n\n".join(
        [
            table(headings, course),
            "File operations, entries of the largest folder, and real milliseconds of a claim "
            "(median and 99th percentile):",
            table([*files, "claim", "slow claim"], cost),
            caption(record),
        ]
    )


# ---------------------------------------------------------------------- per-sample batches
def batch_section(record: Record) -> str:
    """Four ways to run a batch, for each batch and threshold, and how mixed the batch is."""
    parts = []
    for name in dict.fromkeys(row["batch"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["batch"] == name]
        alone = [row for row in rows if row["name"] == "one by one"]
        spread = ", ".join(
            f"{row['calls_min']:g} to {row['calls_max']:g} (deviation {row['calls_std']:.1f}) at "
            f"{row['threshold']:g}"
            for row in alone
        )
        parts += [
            f"### Prompts {name}",
            f"Calls of each branch that a prompt takes alone: {spread}.",
            table(
                ["", "threshold", "samples", "calls", "speed", "PSNR", "worst", "hard half"],
                map(batch_row, rows),
            ),
        ]
        same = [row for row in rows if row["name"] == "per sample"]
        far = max(row["difference_to_alone"] for row in same)
        parts.append(
            f"Samples that took as many calls in the batch as alone: "
            f"{' and '.join(str(row['same_calls_as_alone']) for row in same)} of "
            f"{same[0]['prompts']}; largest difference of a value: {far:g}."
        )
    return "\n\n".join([*parts, caption(record)])


def batch_row(row: Row) -> list[str]:
    """One way of running a batch; the full run is the reference."""
    reference = row["name"] == "full"
    return [
        row["name"],
        "" if reference else f"{row['threshold']:g}",
        str(row["network_samples"]),
        f"{row['calls_mean']:.1f}",
        f"{row['processor_speedup']:.2f} x",
        *("" if reference else f"{row[key]:.1f}" for key in ("psnr_mean", "psnr_min", "psnr_hard")),
    ]


# ------------------------------------------------------------------------------- families
def families_section(record: Record) -> str:
    """Which cache works on which family: how many, each pair, and why not."""
    cells = {(row["family"], row["method"]): row for row in record["rows"]}
    families, methods = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    kinds = [k for k in KINDS if any(row["status"] == k for row in record["rows"])]
    counts = []
    for method in methods:
        found = [cells[name, method]["status"] for name in families]
        helped = [r for r in record["rows"] if (r["method"], r["status"]) == (method, "works")]
        by_hand = sum(bool(row["detail"]) for row in helped)
        counts.append([method, *(str(found.count(kind)) for kind in kinds), str(by_hand or "")])
    pairs = [[name, *(outcome(cells[name, method]) for method in methods)] for name in families]
    return "\n\n".join(
        [
            table([f"of {len(families)} families", *kinds, "works by hand"], counts),
            caption(record),
            "## Family by family",
            "A percentage is the share of the layers' work that was still done where it works.",
            table(["", *methods], pairs),
            "## Why not",
            left_aligned(["Method", "What it said", "Families"], reasons(record)),
        ]
    )


KINDS = ("works", "no-effect", "error", "not installed")
"""What a cache may do on a family."""


def outcome(row: Row) -> str:
    """A cell of the table of families."""
    return f"{row['work']:.0%}" if row["status"] == "works" else str(row["status"])


def reasons(record: Record) -> list[list[str]]:
    """Why a method does not work, with the families that it says so on."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in record["rows"]:
        if row["status"] != "works":
            found.setdefault((row["method"], row["detail"]), []).append(row["family"])
    return [
        [method, "`" + cell(said).replace("`", "'") + "`", ", ".join(names)]
        for (method, said), names in sorted(found.items())
    ]


# ---------------------------------------------------------------------------------- code
def cli_root() -> Any:
    """The `erta` command as click sees it; `erta bench` hands over to a group of its own."""
    import typer

    def command(module: str) -> Any:
        return typer.main.get_command(importlib.import_module(module).app)

    root = command("erta_framework.cli")
    root.commands["bench"] = command("erta_framework.bench.cli")
    return root


def cli_reference() -> str:
    """The help of every command."""
    return "\n\n".join(command_help(cli_root(), "erta", level=2))


def command_help(command: Any, path: str, level: int) -> list[str]:
    """Heading, usage, text and options of a command and of those below it."""
    shown = [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    names = command.list_commands(None) if hasattr(command, "list_commands") else []
    below = {name: command.get_command(None, name) for name in names}
    usage = [path, *(["COMMAND"] if below else []), *map(metavar, arguments), "[OPTIONS]"]
    rows = [
        [f"`{metavar(p) if p in arguments else spelled(p)}`", cell(p.help), default(p)]
        for p in shown
    ]
    parts = [
        f"{'#' * level} `{path}`",
        inspect.cleandoc(command.help or ""),
        f"```text\n{' '.join(usage)}\n```",
        left_aligned(["", "Meaning", "Default"], rows) if rows else "",
    ]
    for name, sub in below.items():
        parts += command_help(sub, f"{path} {name}", level + 1)
    return [part for part in parts if part]


def metavar(argument: Any) -> str:
    """How a positional argument is written."""
    return str(argument.metavar or f"{argument.name.upper()}{'...' * (argument.nargs != 1)}")


def spelled(option: Any) -> str:
    """How an option is written, with its other names and its opposite."""
    return ", ".join([*option.opts, *option.secondary_opts])


def default(parameter: Any) -> str:
    """The default of an option, where it has one to show."""
    value = parameter.default
    if value is None or isinstance(value, bool) or callable(value) or not parameter.show_default:
        return ""
    return f"`{value}`"


def cell(text: str | None) -> str:
    """Text that may stand in a table."""
    return (text or "").replace("|", "\\|").replace("\n", " ")


def left_aligned(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of words."""
    return table(headings, rows).replace("---:", "---", len(headings))


def checks_table() -> str:
    """The checks of the conformance kit with what each asks for."""
    from erta_framework.testing import CHECKS

    rows = [
        [f"`{check.__name__}`", inspect.cleandoc(check.__doc__ or "").splitlines()[0]]
        for check in CHECKS
    ]
    return left_aligned(["Check", "Holds when"], rows)


def schedulers_table() -> str:
    """What every scheduler allows, with the reason."""
    from erta_integrations.diffusers import CAPABILITIES

    rows = [[f"`{name}`", c.support.value, c.reason] for name, c in sorted(CAPABILITIES.items())]
    return left_aligned(["Scheduler", "Support", "Why"], rows)


@functools.cache
def combinations_section() -> str:
    """Which policies can stand beside which: parts, refused pairs, and what was left out."""
    from erta_framework.composition import OWN, Driver, overview
    from erta_framework.policy import Policy
    from erta_framework.profile import Profile
    from erta_framework.records import Seam
    from erta_framework.signals import wanted
    from erta_integrations.diffusers import attach, signals, trials
    from erta_integrations.diffusers.schedulers import capabilities
    from erta_integrations.diffusers.tiny import FAMILIES
    from erta_integrations.diffusers.trunk import discover, first_blocks, longest

    family = FAMILIES["wan-euler"]
    pipe = family.build()

    def calibrated(profiler: Policy) -> Profile:
        seam = Seam.TRUNK if wanted([profiler]) else Seam.LATENT
        with attach(pipe, [profiler], seam=seam) as run:
            family.run(pipe, steps=8)
        return run.profile()

    stacks = discover(pipe.transformer)
    inner = signals.available(pipe.transformer, first_blocks(stacks), longest(stacks))
    euler = capabilities(pipe.scheduler) | signals.of_text([pipe.transformer])
    whole = euler | trials.offered({"transformer": pipe.transformer})
    found = overview(
        calibrated,
        (*OWN, Driver("pipeline", whole), Driver("pipeline, trunk", euler | inner, Seam.TRUNK)),
    )
    names = [driver.name for driver in found.drivers]
    rows = [
        [role.value, f"`{name}`", *("yes" if each else "no" for each in served)]
        for role, name, served in found.rows()
    ]
    counts = [found.counts(driver) for driver in found.drivers]
    rows.append(["", "combinations allowed", *(f"{a} of {made}" for a, made in counts)])
    pairs = [
        [" + ".join(f"`{name}`" for name in chosen), "; ".join(where), cell(reason)]
        for chosen, where, reason in found.refused()
    ]
    absent = [[f"`{name}`", cell(reason)] for name, reason in found.absent.items()]
    parts = [left_aligned(["Part", "Policy", *names], rows)]
    if pairs:
        parts += [
            "Not together, although each may stand alone:",
            left_aligned(["Policies", "Where", "Why"], pairs),
        ]
    if absent:
        parts += [
            "Not among them, since they cannot be made without a setting of yours:",
            left_aligned(["Policy", "Why"], absent),
        ]
    return "\n\n".join(parts)


@functools.cache
def pipelines_table() -> str:
    """The pipelines of the test matrix, with what could not be built for it."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within diffusers are not ours to show
        from erta_integrations.diffusers.tiny import FAMILIES, NOT_COVERED

        for name, family in FAMILIES.items():
            networks = dict.fromkeys(inner.partition(".")[0] for inner in family.inner)
            pipe = type(family.build())
            rows.append([name, f"`{pipe.__name__}`", ", ".join(networks), str(family.calls)])
    absent = [[name, reason] for name, reason in NOT_COVERED.items()]
    headings = ["Family", "Pipeline", "Networks", "Calls a step"]
    return "\n\n".join(
        [
            left_aligned(headings, rows),
            "Not among the tests:",
            left_aligned(["Family", "Why"], absent),
        ]
    )


# -------------------------------------------------------------------------------- budgets
def budgets_section(record: Record) -> str:
    """PSNR of every schedule, a row a schedule and what stands in, a column a number of calls."""
    columns = budgets(record)
    rows: dict[tuple[str, str], dict[int, Row]] = {}
    for row in record["rows"]:
        if row["budget"] is not None:
            rows.setdefault((row["stands_in"], row["name"]), {})[row["budget"]] = row
    best = {
        (kind, n): max(r[n]["psnr_mean"] for (other, _), r in rows.items() if other == kind)
        for kind, _ in rows
        for n in columns
    }
    lines = []
    for (kind, name), found in rows.items():
        cells = [quality(found[n]) for n in columns]
        marked = [
            f"**{cell}**" if found[n]["psnr_mean"] == best[kind, n] else cell
            for cell, n in zip(cells, columns, strict=True)
        ]
        lines.append([f"{kind}: {name}", *marked])
    full = full_run(record)
    settings = record["settings"]
    parts = [
        f"PSNR in dB against the full run of {full['calls']} calls, mean and standard deviation "
        f"over {samples(record)}; {settings['calibration_samples']} calibration samples. The best "
        "of each group is bold.",
        table(["", *(f"{n} calls" for n in columns)], lines),
    ]
    if settings["refine_trials"]:
        parts.append(
            f"Refined plans tried {settings['refine_trials']} moves on "
            f"{settings['refine_samples']} calibration samples, {settings['refine_calls']} network "
            "calls of a branch in all."
        )
    return "\n\n".join([*parts, caption(record)])


def lambda_section(record: Record) -> str:
    """What a fifth less and more of lambda does."""
    lines = [
        [
            f"{row['budget']} calls asked, lambda {row['name']}",
            f"{row['threshold']:.4f}",
            f"{row['calls']:g}",
            quality(row),
        ]
        for row in record["rows"]
        if row["budget"] is not None
    ]
    return "\n\n".join(
        [
            table(["", "lambda", "network calls", "PSNR"], lines),
            f"{samples(record)}; {caption(record)}",
        ]
    )


# --------------------------------------------------------------------------------- fitted
FITTED_PARTS = {
    "calls": "At several numbers of network calls",
    "choices": "One setting of the fit changed at a time",
    "samples": "Numbers of calibration samples, and batches that were added up",
    "robust": "A fit on red, green and blue prompts at guidance 3, on what it has not seen",
    "solvers": "Fits for other numbers of steps, and under a solver with memory",
}


def fitted_section(record: Record) -> str:
    """Every row of the study of fitted reuse, a table a part."""
    shared = record["settings"]
    parts = [
        f"PSNR in dB against the full run of {shared['steps']} steps from the same noise, mean and "
        f"standard deviation over {shared['measured']} held-out samples, and the worst of them. "
        f"Fits have {shared['fitted_samples']} samples unless said otherwise. The gain is over the "
        "same schedule under a first-order Taylor forecast; the last column is the root of the "
        "mean squared error that the fit ended with on its own calibration samples.",
        caption(record),
    ]
    for part, title in FITTED_PARTS.items():
        rows = [row for row in record["rows"] if row["part"] == part]
        if not rows:
            raise MissingDataError(
                f"fitted.json has no part {part!r}; write it with `{COMMANDS['fitted']}`"
            )
        headings = [title, "calls", "PSNR", "worst", "gain", "calibration"]
        parts.append(table(headings, map(fitted_line, rows)))
    return "\n\n".join([*parts, fitted_findings(record)])


def fitted_shapes(names: Sequence[str], model: str = "shapes-wan") -> str:
    """Rows of studies of fitted reuse on a trained model, from one or more files."""
    records = [load(name) for name in names]
    shared = records[0]["settings"]
    headings = [model, "calls", "PSNR", "worst", "gain", "calibration"]
    rows = [row for record in records for row in record["rows"]]
    said = (
        f"{shared['measured']} held-out samples, fits with {shared['fitted_samples']}; the columns "
        "are those of the tables below."
    )
    notes = [caption(record) for record in records]
    return "\n\n".join([said, table(headings, map(fitted_line, rows)), *notes])


def fitted_line(row: Row) -> list[str]:
    """One row; a profile that stands for a rule says so."""
    kept = row.get("kept", "fitted")
    gain, own = row["gain_mean"], row.get("fitted_error")
    return [
        row["name"] + ("" if kept == "fitted" else f" (stands for {kept} reuse)"),
        f"{row['calls']:g}",
        quality(row),
        f"{row['psnr_worst']:.1f}",
        "" if gain is None else f"{gain:+.1f}",
        "" if own is None else f"{own:.4f}",
    ]


def fitted_findings(record: Record) -> str:
    """Where the fit is ahead of the best other row, and where it is not."""
    lines = []
    calls = [row for row in record["rows"] if row["part"] == "calls"]
    for budget in budgets({"rows": calls}):
        rows = [row for row in calls if row["budget"] == budget]
        ours = next(row for row in rows if row["kind"] == "ours")
        best = max(
            (row for row in rows if row["kind"] != "ours"), key=lambda r: float(r["psnr_mean"])
        )
        ahead = float(ours["psnr_mean"]) - float(best["psnr_mean"])
        lines.append(
            f"* At {budget} calls: {ahead:+.1f} dB against the best other row ({best['name']})."
        )
    choices = [row for row in record["rows"] if row["part"] == "choices" and row["kind"] == "ours"]
    shipped = next(row for row in choices if row["name"] == "as shipped")
    better = [r["name"] for r in choices if r["psnr_mean"] > shipped["psnr_mean"] + EQUAL]
    lines.append(f"* Settings that did better here than as shipped: {', '.join(better) or 'none'}.")
    return "\n".join(lines)


def peers_leads(name: str) -> str:
    """Who leads on a model."""
    record = load(name)
    return peers_summary(record, table, caption(record))


def peers_rows(name: str) -> str:
    """All rows of a model."""
    return peers_section(load(name), table, left_aligned, cell)


SECTIONS: dict[str, Callable[[], str]] = {
    "table:ablation": lambda: ablation_section(load("ablation")),
    "findings:ablation": lambda: findings(load("ablation")),
    "table:accuracy": lambda: accuracy_section(load("accuracy")),
    "table:images": lambda: image_accuracy_section(load("accuracy_image")),
    "table:families": lambda: families_section(load("families")),
    "table:fitted": lambda: fitted_section(load("fitted")),
    "shapes:fitted": lambda: fitted_shapes(
        ["fitted_25", "fitted_17", "fitted_12", "fitted_robust"]
    ),
    "unet:fitted": lambda: fitted_shapes(["fitted_unet"], "shapes-unet"),
    "choices:fitted": lambda: fitted_shapes(["fitted_choices"]),
    "table:overhead": lambda: overhead_section(load("overhead")),
    "table:attach": lambda: attach_section(load("attach_overhead")),
    "table:batch": lambda: batch_section(load("batch")),
    "table:budgets": lambda: budgets_section(load("budgets")),
    "table:lambda": lambda: lambda_section(load("lambda")),
    "table:combinations": combinations_section,
    "table:policies": lambda: policies_section(load("policies")),
    **{
        f"{part}:{name}": functools.partial(made, name)
        for name in ("peers", "peersflux", "peersunet")
        for part, made in (("summary", peers_leads), ("table", peers_rows))
    },
    "table:scale": lambda: scale_section(load("scale")),
    "table:simulate": lambda: simulate_section(load("simulate")),
    "table:pipeline": lambda: pipeline_section(load("pipeline"), load("ablation")),
    "cli": cli_reference,
    "checks": checks_table,
    "table:schedulers": schedulers_table,
    "table:pipelines": pipelines_table,
}


def filled(markdown: str) -> str:
    """A page with its comments replaced.

    Raises:
        MissingDataError: A comment names no section, or its numbers are missing.
    """

    def section(match: re.Match[str]) -> str:
        if match[1] not in SECTIONS:
            raise MissingDataError(f"<!-- {match[1]} --> is none of {', '.join(SECTIONS)}")
        return SECTIONS[match[1]]()

    return re.sub(r"<!-- ([a-z:]+) -->", section, markdown)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs with the text of every page.

    Raises:
        PluginError: What a page shows is missing; ends the build with one line.
    """
    from mkdocs.exceptions import PluginError

    try:
        return filled(markdown)
    except MissingDataError as error:
        raise PluginError(str(error)) from error
