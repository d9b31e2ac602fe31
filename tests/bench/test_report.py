import io
import json

import pytest
from rich.console import Console

from erta_bench.core.report import Bench, machine, shown, versions

COLUMNS = {"name": "policies", "calls": "calls", "psnr_mean": "PSNR"}


def printed(bench: Bench) -> str:
    console = Console(file=io.StringIO(), width=80)
    bench.show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_record_holds_what_a_script_needs(tmp_path):
    rows = [{"name": "full", "calls": 50, "psnr_mean": None}, {"name": "half", "calls": 25}]
    path = Bench("demo", rows, COLUMNS, {"guidance": "cfg"}).write(tmp_path / "new" / "out.json")
    read = json.loads(path.read_text())
    assert set(read) == {"command", "date", "versions", "machine", "settings", "rows"}
    assert read["rows"] == rows
    assert read["command"] == "demo"
    assert read["settings"] == {"guidance": "cfg"}
    assert {"python", "torch", "erta-framework"} <= set(read["versions"])
    assert {"processor", "cores", "torch_threads", "accelerator"} <= set(read["machine"])


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Bench("demo", [{"name": "x", "psnr_mean": float("nan")}], COLUMNS).write(tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_table_shows_the_columns_and_leaves_gaps():
    text = printed(Bench("demo", [{"name": "full", "calls": 50, "hidden": 123456}], COLUMNS))
    assert "full" in text
    assert "50" in text
    assert "PSNR" in text
    assert "123456" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "yes"), (7, "7"), (0.1234, "0.123"), (-3.456, "-3.46"), (1234.5, "1234")],
)
def test_values_as_shown(value, text):
    assert shown(value) == text


def test_facts_are_flat():
    for facts in (machine(), versions()):
        assert all(isinstance(v, str | int | None) for v in facts.values())
