"""The documentation is true: its code runs, its commands exist, its numbers were measured."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import markdown
import pytest
import typer
import yaml

import update_readme
from erta_bench.comparison import TO_EXACT, TO_FULL
from erta_bench.galaxy import INSTALL
from erta_framework.config import RunConfig, load_run
from erta_framework.plugins import models, policies
from stacked_tables import StackedTables
from tables.ablation import LADDER, describe_findings, render_ablation, render_ladder
from tables.budgets import render_budgets, render_lambda
from tables.cli import load_cli, render_cli
from tables.data import DATA, MissingDataError, find_command, load_record
from tables.markers import SECTIONS, fill_markers, list_commands
from tables.modules import render_modules
from tables.networks import render_galaxies, render_networks
from tables.pipeline import render_pipeline
from tables.policies import render_policies
from tables.promises import PROMISES, Promise, count_tests, find_files
from tables.rows import format_work
from tiny_pipelines._family import flow, make_embeds
from tiny_pipelines._wan import build_wan_network, build_wan_vae

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
EXECUTED = [*sorted(DOCS.glob("tutorials/*.md")), *sorted(DOCS.glob("how-to/*.md"))]
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def blocks_with_output(page: Path) -> list[tuple[str, str]]:
    """The blocks of Python of a page, each with the output that the page shows; often none."""
    text = page.read_text(encoding="utf-8")
    pattern = r"^```python\n(.*?)^```\n(?:\n```text title=\"prints\"\n(.*?)^```$)?"
    return re.findall(pattern, text + "\n", re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def executed_pages() -> list[object]:
    found = []
    for page in EXECUTED:
        code = "".join(blocks(page, "python"))
        assert code, f"{named(page)} shows no code"
        slow = [pytest.mark.slow] if "shapes_wan" in code or "check_policy" in code else []
        found.append(pytest.param(page, id=named(page), marks=slow))
    return found


# ------------------------------------------------------------------------------- promises
def test_every_fuzz_test_stands_under_a_promise() -> None:
    named = {path.name for promise in PROMISES for path in find_files(promise)}
    fuzzed = {path.name for path in (ROOT / "tests" / "fuzz").glob("test_*.py")}
    assert fuzzed - named == {"test_seed.py"}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.text[:40])
def test_a_promise_has_tests(promise: Promise) -> None:
    for path in find_files(promise):
        tests, *_ = count_tests(path)
        assert tests, f"{path.name} holds no test"


def test_examples_are_counted_as_the_tests_try_them(tmp_path: Path) -> None:
    folder = tmp_path / "fuzz"
    folder.mkdir()
    path = folder / "test_x.py"
    path.write_text(
        "def test_a(examples):\n    examples(3)\n    examples(4)\n"
        "@pytest.mark.slow\ndef test_b(examples):\n    examples(50)\n"
    )
    assert count_tests(path) == (2, 7, 50)


# ----------------------------------------------------------------------------------- code
@pytest.mark.parametrize("page", executed_pages())
def test_the_code_of_a_page_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, (block, shown) in enumerate(blocks_with_output(page), start=1):
        code = compile(block, f"{named(page)}, block {number}", "exec")
        capsys.readouterr()
        exec(code, vars(module))  # noqa: S102 - our own pages
        # its numbers are in the first line; the rest are words for people
        first, printed = shown.partition("\n")[0], capsys.readouterr().out
        assert first in printed, f"{named(page)}, block {number} prints {printed!r}"


def test_the_policy_of_the_tutorial_has_seven_lines() -> None:
    first = blocks(DOCS / "tutorials/write-a-policy.md", "python")[0]
    assert len([line for line in first.splitlines() if line.strip()]) == 7


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 120
    (example,) = blocks(README, "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 9


def test_the_example_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class SmallWan(diffusers.WanPipeline):  # type: ignore[misc, valid-type]
        """The weights and sizes are stood in for; what the reader writes is not."""

        @classmethod
        def from_pretrained(cls, source: str, **settings: object) -> SmallWan:
            assert source.startswith("Wan-AI/")
            assert set(settings) == {"torch_dtype", "device_map"}
            return cls(None, None, build_wan_vae(), flow(shift=3.0), build_wan_network())

        def __call__(self, prompt: str) -> Any:
            words = make_embeds(8, 32)(1)
            return super().__call__(height=16, width=16, num_frames=9, **words)

    monkeypatch.setattr(diffusers, "WanPipeline", SmallWan)
    (example,) = blocks(README, "python")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102 - our own page
    (trace,) = names["run"].traces
    assert (trace.network_calls, trace.reused_calls) == (50, 50)
    assert names["run"].summary().splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_configurations_of_a_page_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        path = tmp_path / "config.yaml"
        path.write_text(block, encoding="utf-8")
        assert load_run(path).model in models(only=[]).names()


# ------------------------------------------------------------------------------- commands
def shell_lines() -> list[object]:
    return [
        pytest.param(line.split("#")[0].strip(), id=f"{named(page)}: {line.strip()}")
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    ]


@pytest.mark.parametrize("line", shell_lines())
def test_a_command_of_the_docs_exists(line: str) -> None:
    program, *words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE)
    elif program == "python":
        assert words[0] == "-m"
        assert importlib.util.find_spec(words[1]) is not None
    elif program == "pre-commit":
        assert importlib.util.find_spec("pre_commit") is not None
    elif program == "erta":
        assert_is_command(words)
    elif program == "torchrun":
        assert importlib.util.find_spec("torch.distributed.run") is not None
    else:
        assert line in ('pip install -c constraints.txt -e ".[demo]"', INSTALL)


@pytest.mark.parametrize("line", list_commands())
def test_a_file_of_numbers_has_a_command(line: str) -> None:
    test_a_command_of_the_docs_exists(line)
    name = Path(line.split()[-1]).stem
    assert line == find_command(name)
    if (DATA / f"{name}.json").is_file():
        assert load_record(name)["command"].split(" --")[0] == line.split(" --")[0]


def test_every_file_of_numbers_is_shown() -> None:
    shown = {name for section in SECTIONS.values() for name in section.files}
    assert {path.stem for path in DATA.glob("*.json")} <= shown


def assert_is_command(words: list[str]) -> None:
    command = load_cli()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.list_commands(None), f"erta has no command {words[0]!r}"
        command = command.get_command(None, words.pop(0))
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


def test_the_command_line_page_lists_every_command() -> None:
    page = render_cli()
    root = load_cli()
    assert isinstance(root, typer.core.TyperGroup)
    for name in root.commands:
        assert f"erta {name}" in page


# -------------------------------------------------------------------------------- numbers
PSNR = {
    "plain Euler": ("plain", 30.0, 25.0),
    "plain Adams-Bashforth 2": ("plain", 29.0, 28.0),
    "uniform": ("ablation", 31.0, 24.0),
    "+ offline policy": ("ablation", 33.0, 26.0),
    "+ timestep adjustment": ("ablation", 32.5, 26.01),
    "ertacache (recipe default)": ("recipe", 34.0, 27.0),
    "phi velocity, nominal time": ("phi", None, 25.5),
    "phi difference, actual time": ("phi", None, 25.8),
    "K/B scalar": ("correction", None, 27.0),
}


def on_both_axes(value: float | None) -> dict[str, float | None]:
    """A quality to the full run, and one to the exact solution that is 3 dB less."""
    fine = 36.0 if value is None else value - 3
    return {
        "psnr_mean": value,
        "psnr_std": None if value is None else 1.0,
        "psnr_fine_mean": fine,
        "psnr_fine_std": 0.5,
        "psnr_fine_worst": fine - 4,
    }


def measured() -> dict[str, Any]:
    """A record as `erta bench ablation` writes it, with numbers made for the test."""
    common = {"processor_seconds": 2.0, "processor_speedup": 2.0, "ssim_mean": 0.9}
    common |= {"steps": 50, "prompts": 4, "seeds": 3}
    full: dict[str, Any] = {**on_both_axes(None), "ssim_mean": 1.0}
    full |= {"processor_seconds": 4.0, "processor_speedup": 1.0}
    rows = [{**common, "name": "full", "group": "plain", "budget": None, "calls": 50, **full}]
    for name, (group, *values) in PSNR.items():
        for budget, value in zip((25, 12), values, strict=True):
            if value is not None:
                facts = {"name": name, "group": group, "budget": budget, "calls": budget}
                rows.append({**common, **facts, **on_both_axes(value)})
    return {
        "command": "erta bench ablation",
        "date": "2026-01-02",
        "machine": {"processor": "a processor", "cores": 2, "accelerator": None},
        "versions": {"torch": "2.13.0"},
        "settings": {},
        "rows": rows,
    }


def test_the_ablation_table_shows_the_numbers_and_marks_the_best() -> None:
    lines = render_ladder(measured(), TO_FULL).splitlines()
    assert lines[0] == "| to the full run | 25 of 50 calls | 12 of 50 calls |"
    assert "| plain Adams-Bashforth 2 | 29.0 ± 1.0 | **28.0 ± 1.0** |" in lines
    assert "| ertacache (recipe default) | **34.0 ± 1.0** | 27.0 ± 1.0 |" in lines
    assert len(lines) == 2 + sum(values[1] is not None for values in PSNR.values())
    exact = render_ladder(measured(), TO_EXACT).splitlines()
    assert exact[0] == "| to the exact solution | 25 of 50 calls | 12 of 50 calls |"
    assert "| plain Adams-Bashforth 2 | 26.0 ± 0.5 | **25.0 ± 0.5** |" in exact


def test_the_words_of_the_findings_follow_from_the_numbers() -> None:
    said = describe_findings(measured()).splitlines()
    assert len(said) == 7
    better = "to the exact solution **better** (+2.0 / +2.0 dB), to the full run **better** (+2.0"
    assert f"uniform reuse, at 25 and 12 network calls: {better}" in said[0]
    assert (
        "added to it, at 25 and 12 network calls: to the exact solution **worse at 25** (-0.5"
        in (said[1])
    )
    assert "to the full run **better at 25, worse at 12** (+5.0 / -1.0 dB)" in said[4]
    assert (
        "to the full run the offline policy alone has 26.0 dB, the best 25.8 (phi difference, "
        "actual time), the worst 25.5 (phi velocity, nominal time)" in said[5]
    )


def test_the_details_name_the_machine_and_the_day() -> None:
    section = render_ablation(measured())
    assert "`erta bench ablation`, 2026-01-02, a processor, 2 cores; torch 2.13.0." in section
    assert "| full | 50 | 100% | 4.0 | 1.00 x | 36.0 ± 0.5 | 32.0 | reference |  |" in section
    assert (
        "The full run itself is 36.0 dB from the exact solution, its worst sample 32.0" in section
    )
    assert "4 held-out prompts × 3 seed sets" in section


def test_work_is_that_of_the_record_and_else_that_of_whole_calls() -> None:
    full = {"calls": 50}
    assert format_work({"calls": 12}, full) == "24%"
    assert format_work({"calls": 50, "work": 0.37}, full) == "37%"


def test_a_row_that_is_missing_is_an_error() -> None:
    record = measured()
    record["rows"] = [row for row in record["rows"] if row["name"] != "uniform"]
    with pytest.raises(MissingDataError, match="no row 'uniform'"):
        describe_findings(record)


def test_the_readme_shows_what_was_measured() -> None:
    text = README.read_text(encoding="utf-8")
    assert update_readme.fill_summaries(text) == text, "run `python docs/update_readme.py`"


def through_pipeline() -> dict[str, Any]:
    """A record as `erta bench pipeline` writes it, with numbers made for the test."""
    rows: list[dict[str, Any]] = []
    for scheduler, plain in (("flow_euler", "plain Euler"), ("unipc", "plain UniPC")):
        common = {"scheduler": scheduler, "status": "measured", "detail": ""}
        own = scheduler == "flow_euler"
        alike = {"identical": own or None, "largest_difference": 0.0 if own else None}
        full = {"name": "full", "group": "plain", "budget": None, **on_both_axes(None), **alike}
        full |= {"prompts": 4, "calls": 50}
        rows.append({**common, **full, "own_psnr_mean": None})
        for name in PSNR:
            group, *values = PSNR[name]
            if group not in LADDER or "Adams" in name:
                continue
            for budget, value in zip((25, 12), values, strict=True):
                facts = {"name": plain if group == "plain" else name, "group": group}
                facts |= {
                    "budget": budget,
                    "calls": budget,
                    **on_both_axes(value),
                    "own_psnr_mean": value,
                    **alike,
                }
                if "timestep" in name and own:
                    facts |= {"identical": False, "largest_difference": 3e-6}
                    facts |= {"psnr_mean": value + 0.0002}
                if "timestep" in name and not own:
                    facts |= {"status": "refused", "detail": "cannot", "psnr_mean": None}
                rows.append({**common, **facts})
    return {**measured(), "rows": rows}


def test_the_pipeline_stands_beside_the_own_loop() -> None:
    section = render_pipeline(through_pipeline(), measured())
    plain = "27.0 ± 0.5 | 23.0 | 30.0 ± 1.0"
    assert f"| plain steps | 50% | {plain} | 30.0 | yes | {plain} |" in section
    adjusted = (
        "| + timestep adjustment | 24% | 23.0 ± 0.5 | 19.0 | 26.0 ± 1.0 | 26.0 | within 3e-06 "
    )
    assert f"{adjusted}| refused |  |  |" in section
    assert "under Euler 36.0 dB (worst 32.0), under UniPC 36.0 dB (worst 32.0)" in section
    assert "same bits in 9 of 11 runs. The others (+ timestep adjustment) differ" in section
    assert "at most 3e-06 in a pixel and 2e-04 dB in a mean" in section
    recipe = "own loop, own grid **better** (+4.0 / +2.0 dB); pipeline, Euler **better** (+4.0"
    for axis in ("exact solution", "full run"):
        assert f"scheduler, to the {axis} at 25 and 12 calls: {recipe}" in section
    assert "* Refused under UniPC (+ timestep adjustment): `cannot`." in section


def scheduled() -> dict[str, Any]:
    """A record as `erta bench budgets` and `erta bench lambda` write it, made for the test."""
    common = {"prompts": 4, "seeds": 1, "threshold": 0.1}
    whole = {"name": "full", "budget": None, "calls": 50}
    rows: list[dict[str, Any]] = [{**common, **whole, **on_both_axes(None)}]
    values = {("residual", "threshold walk"): 30.0, ("residual", "reuse"): 31.0}
    values[("forecast", "forecast")] = 40.0
    for (stands_in, name), value in values.items():
        for budget in (25, 12):
            facts = {"stands_in": stands_in, "name": name, "budget": budget, "calls": budget}
            rows.append({**common, **facts, **on_both_axes(value + budget / 10)})
    settings = {"calibration_samples": 8, "refine_trials": 3, "refine_samples": 2}
    return {**measured(), "rows": rows, "settings": {**settings, "refine_calls": 99}}


def test_schedules_are_compared_by_what_stands_in() -> None:
    section = render_budgets(scheduled())
    assert "| residual: threshold walk | 50% / 24% | 32.5 ± 1.0 | 31.2 ± 1.0 |" in section
    assert "| residual: reuse | 50% / 24% | **33.5 ± 1.0** | **32.2 ± 1.0** |" in section
    assert "| forecast: forecast | 50% / 24% | **42.5 ± 1.0** | **41.2 ± 1.0** |" in section
    assert "tried 3 moves on 2 calibration samples, 99 network calls" in section
    said = render_lambda(scheduled())
    assert "| 25 calls asked, lambda reuse | 0.1000 | 25 | 30.5 ± 0.5 | 26.5 | 33.5 ± 1.0 |" in said
    assert "| residual: reuse | 50% / 24% | **30.5 ± 0.5** | **29.2 ± 0.5** |" in section


def test_a_scheduler_without_a_row_of_the_other_is_an_error() -> None:
    record = through_pipeline()
    record["rows"] = [row for row in record["rows"] if row["name"] != "plain UniPC"]
    with pytest.raises(MissingDataError, match="other rows of flow_euler than of unipc"):
        render_pipeline(record, measured())


def inside_the_network() -> dict[str, Any]:
    """A record of rows inside the network beside whole outputs, with numbers made for the test."""
    common: dict[str, Any] = {"processor_speedup": 1.5, "bytes_held": 2048}
    common |= {"status": "measured", "setting": "", "prompts": 4, "seeds": 1, "steps": 50}
    full = {"name": "full", "budget": None, "calls": 50, "work": 1.0}
    rows: list[dict[str, Any]] = [{**common, **full, **on_both_axes(None)}]
    for budget, reuse, line in ((25, 40.0, 50.0), (17, 30.0, 41.0)):
        whole = {"budget": budget, "calls": budget, "work": budget / 50}
        inside = {"budget": budget, "calls": 50, "name": "cut", "setting": "n=3", "work": 0.36}
        status = "measured" if budget == 17 else "off budget"
        attention = {"name": "part", "setting": "n=12", "work": 0.8, "status": "off budget"}
        rows += [
            {**common, **whole, "name": "uniform reuse", **on_both_axes(reuse)},
            {**common, **whole, "name": "uniform + line", **on_both_axes(line)},
            {**common, **inside, **on_both_axes(35.0), "status": status},
            {**common, **inside, **attention, **on_both_axes(45.0)},
            {"name": "none", "budget": budget, "status": "refused", "detail": "because"},
        ]
    settings = {"model": "a model", "pipeline": "APipeline"}
    return {**measured(), "rows": rows, "settings": settings}


def test_rows_inside_the_network_stand_beside_whole_outputs_of_no_more_work() -> None:
    section = render_modules(inside_the_network())
    first, second = section.index("The work of 25 of 50"), section.index("The work of 17 of 50")
    assert first < second < section.index("| cut<br>`n=3` | 36% | 50 | 32.0 ± 0.5 | 28.0 | 35.0")
    assert section.count("cut<br>") == 1  # where it meets the work, and nowhere else
    cells = "42.0 ± 0.5 | 38.0 | 45.0 ± 1.0 | 1.50 x | 37.0, 40.0 (50%) | 47.0, 50.0 (50%)"
    assert f"| part<br>`n=12` | 80% | 50 | {cells} |" in section
    assert section.count("| none | refused | because |") == 1


def of_network(name: str, **settings: Any) -> dict[str, Any]:
    """A record as `erta bench peers` writes it, of two peers beside ours."""
    full = {"name": "full", "kind": "full", "budget": None, "steps": 50, "prompts": 4, "seeds": 2}
    rows: list[dict[str, Any]] = [{**full, "psnr_fine_mean": 37.0, "psnr_fine_worst": 33.0}]
    for row, kind, mean, worst in (
        ("mine", "ours", 41.0, 30.0),
        ("near", "peer", 40.0, 25.0),
        ("safe", "peer", 35.0, 31.0),
    ):
        facts = {"name": row, "kind": kind, "budget": 12, "calls": 12, "work": 0.24}
        facts |= {"psnr_fine_mean": mean, "psnr_fine_worst": worst}
        rows.append({**facts, "psnr_mean": mean + 5, "psnr_worst": worst + 5})
    return {**measured(), "rows": rows, "settings": {"model": name, **settings}}


def test_many_networks_stand_in_one_table() -> None:
    page = render_galaxies(of_network("galaxy-x"), of_network("galaxy-hsc64-noise"))
    cells = "37.0 / **33.0** | **41.0** / 30.0 | 40.0 / 31.0 | – | – | **46.0** / 35.0"
    for name in ("galaxy-x", "galaxy-hsc64-noise"):
        assert f"| {name} | 8 | 12 | {cells} | 45.0 / **36.0** |" in page
    missing = page.partition("Not measured: ")[2]
    assert "galaxy-ztf32" in missing
    assert "galaxy-hsc64" not in missing
    assert "| 37.0 / **33.0** | **41.0**† / 30.0 |" in render_networks(
        of_network("x", solution_psnr=46.5)
    )
    assert render_networks() == ""


def at_equal_calls() -> dict[str, Any]:
    """A record as `erta bench policies` writes it, with numbers made for the test."""
    common: dict[str, Any] = {"status": "measured", "ssim_mean": 0.9, "setting": "", "work": 0.5}
    common |= {"processor_speedup": 1.9, "processor_efficiency": 0.95}
    common |= {"bytes_held": 30720, "calibration_calls": 0, "budget": 25, "calls": 25, "detail": ""}
    full = {"name": "full", "group": "plain", "budget": None, "calls": 50, **on_both_axes(None)}
    full |= {"steps": 50, "prompts": 4, "seeds": 3}
    rows = [
        {**common, **full},
        {**common, "name": "plain UniPC", "group": "plain", **on_both_axes(37.0)},
        {**common, "name": "Some", "group": "policy", **on_both_axes(35.0), "setting": "n=2"},
        {**common, "name": "Both", "group": "combination", **on_both_axes(45.0)},
        {**common, "name": "Parts", "group": "other", **on_both_axes(50.0), "status": "off budget"},
        {"name": "Gone", "group": "other", "budget": 25, "status": "not installed", "detail": "x"},
    ]
    return {**measured(), "rows": rows}


def test_the_comparison_names_the_best_that_kept_to_the_calls() -> None:
    section = render_policies(at_equal_calls())
    for axis, plain in (("exact solution", 34.0), ("full run", 37.0)):
        best = f"* Nearest to the {axis} at 25 calls: **Both**. By group, fewer steps: plain UniPC"
        assert f"{best} ({plain} dB); " in section
    assert section.count("fewer steps: 1 of 2 rows.") == 2
    assert "The full run itself is 36.0 dB from the exact solution" in section
    nearer = (
        "Nearer to the exact solution than the full run: Both at 25 (42.0 dB), Parts at 25 (47.0"
    )
    assert nearer in section
    cells = "25 | 1.90 x | 0.95 | 32.0 ± 0.5 | 28.0 | 35.0 ± 1.0 | 0.900 | 50% | 30,720 | 0"
    assert f"| Some<br>`n=2` | {cells} |" in section
    assert "| Gone | 25 | not installed | x |" in section
    assert section.count("| Parts |") == 2  # its numbers, and that it is off


@pytest.mark.parametrize("name", ["ablation", "accuracy", "overhead", "pipeline", "policies"])
def test_a_missing_file_of_numbers_fails_the_build(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=f"{name}.json.*write it with"):
        load_record(name, tmp_path)
    (tmp_path / f"{name}.json").write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(MissingDataError, match="no rows"):
        load_record(name, tmp_path)


def test_a_stopped_run_is_not_published(tmp_path: Path) -> None:
    stopped = {"rows": [{"name": "full"}], "settings": {"unfinished": "1 of 3 seed sets"}}
    (tmp_path / "peers.json").write_text(json.dumps(stopped), encoding="utf-8")
    with pytest.raises(MissingDataError, match=r"peers.json was stopped: 1 of 3 seed sets"):
        load_record("peers", tmp_path)


def test_every_marker_of_a_page_is_replaced() -> None:
    seen = set()
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        seen.update(re.findall(r"<!-- ([a-z0-9:]+) -->", text))
        assert "<!--" not in fill_markers(text), named(page)
    assert seen == set(SECTIONS)


def test_a_misspelt_marker_is_an_error() -> None:
    with pytest.raises(MissingDataError, match="table:abaltion"):
        fill_markers("<!-- table:abaltion -->")


# -------------------------------------------------------------------------------- tables
def first_column(page: str, heading: str) -> set[str]:
    """Names in backticks in the first column of the table under a heading or with it."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(heading)[2]
    rows = re.search(r"^\|.*?\n\n", text + "\n\n", re.MULTILINE | re.DOTALL)
    assert rows is not None
    return set(re.findall(r"^\| `([\w.*]+)`", rows[0], re.MULTILINE))


def test_the_profile_page_names_the_statistics() -> None:
    from erta_framework.testing import toy_profile
    from erta_policies.ertacache import ReplayProfiler, ResidualProfiler
    from erta_policies.meancache import MeanCacheProfiler

    page = "reference/profile.md"
    for profiler in (ResidualProfiler(), ReplayProfiler(threshold=0.1), MeanCacheProfiler()):
        heading = f"## Statistics of a `{profiler.name}`"
        assert first_column(page, heading) == set(toy_profile(profiler).statistics)


def test_the_policy_page_names_the_catalogue() -> None:
    assert first_column("reference/policies.md", "# Policies") == set(policies(only=[]).names())


def test_the_configuration_page_shows_existing_keys() -> None:
    shown = first_column("reference/config.md", "# Configuration")
    assert shown == {"model", "policies", "solver", "guidance"}
    assert shown < set(RunConfig.__dataclass_fields__)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w./-]+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"])))
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{named(page)} links to {target}"


def test_the_cells_of_a_table_know_their_column() -> None:
    page = markdown.markdown(
        "| `a` | b |\n|---|---:|\n| 1 | **2** |\n", extensions=["tables", StackedTables()]
    )
    assert '<td data-label="a">1</td>' in page
    assert '<td data-label="b" style="text-align: right;"><strong>2</strong></td>' in page
    assert "data-wide" not in page
