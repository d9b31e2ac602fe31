"""The page of all methods: every policy is on it, and published figures say where they are from."""

from __future__ import annotations

from typing import Any

import pytest

from erta_bench.comparison.contenders import CONTENDERS
from erta_framework.plugins import policies
from tables.data import COMMANDS, MissingDataError
from tables.markers import Section
from tables.methods import (
    GROUPS,
    Method,
    find_measured,
    format_measured,
    list_methods,
    read_file,
    render_methods,
)

METHODS = list_methods()
INSTALLED = set(policies(only=()).names())
SYSTEMS = (
    "ERTACache",
    "MagCache",
    "TeaCache",
    "MeanCache",
    "SenCache",
    "DiCache",
    "FasterCache",
    "DeepCache",
    "CacheQuant",
    "dKV-Cache",
    "ProCache",
    "FEB-Cache",
    "FastCache",
    "AdaCorrection",
    "H2-Cache",
    "PreciseCache",
)
PLAIN = {"name": "plain, same solver", "budget": 25, "psnr_mean": 38.0, "status": "measured"}


def record(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"rows": [{"name": "full", "budget": None}, PLAIN, *rows]}


def row(name: str = "new", **facts: Any) -> dict[str, Any]:
    common = {"budget": 25, "psnr_mean": 40.0, "status": "measured", "work": 0.5}
    return {**common, "name": name, **facts}


def test_every_installed_policy_is_on_the_page() -> None:
    named = {name for each in METHODS for name in (*each.policies, *each.parts)}
    missing = INSTALLED - named - set(read_file()["adapters"])
    assert not missing, "name them in docs/tables/methods.json, as a method or as a part of one"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_a_line_names_is_there(method: Method) -> None:
    assert method.where in GROUPS
    assert bool(method.published) == bool(method.provenance)
    assert method.provenance in ("", *read_file()["provenance"])
    assert method.keeps
    assert method.needs
    assert method.when
    if set(method.policies) <= INSTALLED:  # else it is not here, or not yet
        assert set(method.parts) <= INSTALLED
        assert set(method.rows) <= {contender.name for contender in CONTENDERS}


def test_names_stand_once_and_the_systems_are_among_them() -> None:
    names = [method.name for method in METHODS]
    assert len(names) == len(set(names))
    assert set(SYSTEMS) <= set(names)
    page = render_methods()
    assert all(name in page for name in names)
    assert all(f"*({word})*" in page for word in read_file()["provenance"])


def test_a_cell_says_the_lead_over_as_many_plain_steps() -> None:
    assert format_measured(row(), PLAIN) == "40.0 (+2.0)"
    assert format_measured(row(work=0.44), PLAIN) == "40.0 (+2.0), 44%"
    assert format_measured(row(status="off budget", work=0.78), PLAIN) == "40.0, 78%"
    assert format_measured(row(status="refused", psnr_mean=None), PLAIN) == "refused"


def test_the_first_row_of_the_first_record_is_shown() -> None:
    first, second = record(row("b", psnr_mean=30.0)), record(row("a"), row("b"))
    assert find_measured(("a", "b"), [first, second]) == "30.0 (-8.0)"
    assert find_measured(("a",), [first, second]) == "40.0 (+2.0)"
    assert find_measured(("a", "b"), [second]) == "40.0 (+2.0)"
    assert find_measured(("c",), [first, second]) == "—"
    assert find_measured((), [first]) == "—"


def test_commands_of_rows_inside_name_rows() -> None:
    names = {contender.name for contender in CONTENDERS}
    for name, command in COMMANDS.items():
        if name.startswith("modules"):
            rows = command.split("--row ")[1:]
            assert rows
            assert {each.split(" --")[0].strip().strip('"') for each in rows} <= names


def test_a_table_that_waits_for_its_record_shows_nothing_yet() -> None:
    section = Section(render_methods, ("not_measured",), optional=True)
    assert section() == ""
    with pytest.raises(MissingDataError, match="not_measured"):
        Section(render_methods, ("not_measured",))()
