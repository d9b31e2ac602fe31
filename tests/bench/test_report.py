import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from erta_bench.comparison.page import write_page
from erta_bench.comparison.peers_page import write_peers_page
from erta_bench.core.page import Record
from erta_bench.core.report import Bench, format_value
from erta_framework.environment import collect_versions, describe_machine

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


def test_on_an_accelerator_the_table_shows_wall_seconds():
    row = {"name": "reuse", "speedup": 3.0, "processor_speedup": 1.25}
    bench = Bench("demo", [row], {"name": "", "processor_speedup": "speed"})
    on_cpu = printed(replace(bench, machine={"accelerator": None}))
    assert "1.25" in on_cpu
    assert "speed: by processor seconds" in on_cpu
    on_gpu = printed(replace(bench, machine={"accelerator": "H200"}))
    assert "3.00" in on_gpu
    assert "speed: by wall seconds" in on_gpu


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
    assert format_value(value) == text


def test_facts_are_flat():
    for facts in (describe_machine(), collect_versions()):
        assert all(isinstance(v, str | int | None) for v in facts.values())


ROWS = [
    {"name": "full", "budget": None, "status": "measured", "steps": 50, "seeds": 1, "prompts": 4},
    {"name": "near <full>", "budget": 25, "calls": 25, "psnr_mean": 40.0, "setting": "every=2"},
    {"name": "far", "budget": 25, "calls": 25.5, "psnr_mean": 30.0},
    {"name": "impossible", "budget": 25, "status": "refused", "detail": "no <trunk>"},
]


@pytest.fixture
def record() -> Record:
    """What `erta bench policies` and `erta bench peers` write, as small as it can be."""
    common = {"status": "measured", "group": "policy", "kind": "ours", "processor_speedup": 2.0}
    common |= {"psnr_std": 1.0, "equal": "calls"}
    rows = [{**common, **row} for row in ROWS]
    settings = {"model": "toy", "pipeline": "ToyPipeline"}
    return Bench('erta bench --row "a"', rows, COLUMNS, settings).record()


@pytest.mark.parametrize(
    ("write", "plot"), [(write_page, "pareto.png"), (write_peers_page, "peers.png")]
)
def test_a_page_needs_nothing_beside_it(
    record: Record, tmp_path: Path, write: Callable[[Record, Path], Path], plot: str
):
    path = write(record, tmp_path / "new")
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "new" / "report.html"
    assert (tmp_path / "new" / plot).stat().st_size > 10_000
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "prefers-color-scheme: dark" in page
    assert "4 held-out" in page
    assert "1 seed set, through the unmodified ToyPipeline of diffusers." in page
    assert "<dd>erta bench --row &#34;a&#34;</dd>" in page
    assert "<dt>torch threads</dt>" in page


def test_a_page_orders_rows_and_says_which_are_odd(record: Record, tmp_path: Path):
    page = write_page(record, tmp_path).read_text(encoding="utf-8")
    assert "Policies on toy, 25 of 50 network calls" in page
    assert page.index("near &lt;full&gt;") < page.index(">far</th>")
    assert "<b>40.0</b>" in page
    assert "<b>30.0</b>" not in page
    odd = page.partition("Not as asked for")[2]
    assert "impossible" in odd
    assert "no &lt;trunk&gt;" in odd
    assert "far</th>" not in odd
