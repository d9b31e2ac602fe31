"""The page of all methods: what each keeps, what was published, what we measured, when to use it.

`methods.json` holds what was published, with where it was read. What we measured comes from the
records alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables.data import DATA, Record, Row, load_record
from tables.markdown import render_words

FILE = Path(__file__).with_name("methods.json")
PAGES = Path(__file__).parents[1] / "explanation" / "methods"
GROUPS = {
    "output": "Whole outputs",
    "trunk": "The block stack",
    "modules": "Modules, blocks and stages",
    "tokens": "Tokens",
    "keys": "Keys and values",
}
"""Where something is kept, in the order of the page."""
MODELS = {
    "shapes-wan": ("peers", "modules_wan", "modules_plans_wan"),
    "shapes-flux": ("peersflux", "modules_flux", "modules_plans_flux"),
    "shapes-unet": ("peersunet", "modules_unet", "modules_plans_unet"),
}
"""The records of each model, in the order in which a row is looked for."""
BUDGETS = (25, 17)
"""Half of the work of the full run, else a third."""
PLAIN = "plain, same solver"
SLACK = 0.02
"""Shares of work that differ by less are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One line of the page.

    Attributes:
        name: As published.
        source: Paper or repository.
        page: Page about it, relative to the pages of methods; empty where there is none.
        where: One of `GROUPS`.
        keeps: What is kept from step to step.
        needs: What has to be calibrated or released for it.
        published: Published figures, as far as they were read; may be empty.
        provenance: Where they were read, a key of `provenance` in the file.
        when: When to use it.
        policies: Its policies.
        parts: Policies that it is made of, and its profilers.
        rows: Its rows in the records, the one to show first.
    """

    name: str
    source: str
    page: str
    where: str
    keeps: str
    needs: str
    published: str
    provenance: str
    when: str
    policies: tuple[str, ...]
    parts: tuple[str, ...]
    rows: tuple[str, ...]


def read_file() -> Mapping[str, Any]:
    """Published figures, what their provenance means, and the adapters."""
    found: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def list_methods() -> list[Method]:
    """Every method of the page."""
    lists = ("policies", "parts", "rows")
    found = []
    for each in read_file()["methods"]:
        said: dict[str, Any] = {**each, **{name: tuple(each[name]) for name in lists}}
        found.append(Method(**said))
    return found


def render_methods() -> str:
    """A table for each place where something is kept, and what the words mean."""
    from erta_framework.plugins import policies

    installed = frozenset(policies(only=()).names())
    records = {model: list(load_records(names)) for model, names in MODELS.items()}
    parts = []
    for group, title in GROUPS.items():
        methods = [method for method in list_methods() if method.where == group]
        # language models are measured in another way, on their own page
        shown = {} if group == "keys" else records
        headings = ["", "Keeps", "Needs", "Published", *shown, "When to use it"]
        rows = [
            [
                name_method(method),
                method.keeps,
                method.needs,
                describe_published(method),
                *describe_measured(method, installed, shown),
                method.when if set(method.policies) <= installed else f"not here; {method.when}",
            ]
            for method in methods
        ]
        parts += [f"## {title}", render_words(headings, rows)]
    return "\n\n".join([*parts, render_adapters(installed)])


def load_records(names: Sequence[str]) -> Iterator[Record]:
    """The records that were measured already."""
    for name in names:
        if (DATA / f"{name}.json").is_file():
            yield load_record(name)


def name_method(method: Method) -> str:
    """Name, with a link where it has a page, and source."""
    page = PAGES / method.page
    linked = f"[{method.name}]({method.page})" if method.page and page.is_file() else method.name
    return f"{linked}<br>{method.source}"


def describe_published(method: Method) -> str:
    """What was published, and where that was read."""
    return f"{method.published} *({method.provenance})*" if method.published else "—"


def describe_measured(
    method: Method, installed: frozenset[str], records: Mapping[str, Sequence[Record]]
) -> list[str]:
    """What we measured on each model; nothing where its policies are not here."""
    rows = method.rows if set(method.policies) <= installed else ()
    return [find_measured(rows, found) for found in records.values()]


def find_measured(names: Sequence[str], records: Sequence[Record]) -> str:
    """PSNR of the first row that was measured, and its lead over as many plain steps.

    Half of the work comes first, then a third. A row that reaches no such work shows its own, and
    no lead.
    """
    for record in records:
        for budget in BUDGETS:
            rows = {row["name"]: row for row in record["rows"] if row["budget"] == budget}
            for name in names:
                if name in rows:
                    return format_measured(rows[name], rows[PLAIN])
    return "—"


def format_measured(row: Row, plain: Row) -> str:
    """One row beside plain steps of the same budget."""
    if row.get("psnr_mean") is None:
        return str(row["status"])
    said = f"{row['psnr_mean']:.1f}"
    if row["status"] == "measured":
        said += f" ({row['psnr_mean'] - plain['psnr_mean']:+.1f})"
    if row["status"] != "measured" or abs(row["work"] - 0.5) > SLACK:
        said += f", {row['work']:.0%}"
    return said


def render_adapters(installed: frozenset[str]) -> str:
    """The policies that are parts of others, each with the methods that it serves."""
    served: dict[str, list[str]] = {}
    for method in list_methods():
        for part in installed.intersection(method.parts):
            served.setdefault(part, []).append(method.name)
    rows = [[f"`{name}`", ", ".join(served[name])] for name in sorted(served)]
    adapters = ", ".join(f"`{name}`" for name in read_file()["adapters"])
    return "\n\n".join(
        [
            "## Parts and adapters",
            render_words(["Part", "Of"], rows),
            f"Adapters stand before any rule: {adapters}.",
        ]
    )
