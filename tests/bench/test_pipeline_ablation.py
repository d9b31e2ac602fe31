"""`erta bench pipeline`: both loops side by side, and what UniPC refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from erta_bench.ablation.pipeline import PipelineSetting, run_pipeline_ablation
from erta_bench.cli import app
from erta_bench.setting import Setting
from erta_framework import FlowEuler
from erta_framework.errors import InputError
from erta_framework.sampling import NoGuidance
from erta_integrations.shapes_wan import ShapesWan, load

STEPS, SEED = 6, 11


@pytest.fixture(scope="module")
def model() -> ShapesWan:
    """The trained model, cut to one block for speed."""
    model = load()
    model.transformer.blocks = model.transformer.blocks[:1]
    return model


@pytest.fixture(scope="module")
def prompts(model: ShapesWan) -> list[str]:
    return model.demo_prompts()[1][:2]


@contextmanager
def counted(model: ShapesWan) -> Iterator[list[int]]:
    """Batch sizes of the real network calls, seen from inside the network."""
    seen: list[int] = []
    handle = model.transformer.blocks[0].register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.slow
def test_the_bench_compares_both_loops_and_refuses_what_unipc_cannot(
    model: ShapesWan, prompts: list[str]
) -> None:
    setting = Setting(
        model=model,
        calibration=model.demo_prompts()[0][:2],
        held_out=prompts,
        steps=STEPS,
        substeps=2,
    )
    with counted(model) as calls:
        bench = run_pipeline_ablation(setting, calls=[3], seed=SEED)
    rows = {(row["scheduler"], row["name"]): row for row in bench.rows}
    names = ["uniform", "+ offline policy", "+ timestep adjustment", "+ error rectification"]
    names += ["ertacache (recipe default)"]
    assert list(rows) == [
        *(("flow_euler", name) for name in ["full", "plain Euler", *names]),
        *(("unipc", name) for name in ["full", "plain UniPC", *names]),
    ]
    for (scheduler, name), row in rows.items():
        warped = name in names[2:4]
        assert row["status"] == ("refused" if scheduler == "unipc" and warped else "measured")
        if row["status"] == "refused":
            assert str(row["detail"]).startswith("TimestepAdjuster requires first_order, which")
            continue
        assert row["calls"] == (STEPS if name == "full" else 3)
        assert (row["psnr_mean"] is None) == (name == "full")
        if scheduler == "unipc":
            assert (row["identical"], row["own_psnr_mean"]) == (None, None)
        elif warped:
            assert 0 <= row["largest_difference"] < 2e-5
            assert row["own_psnr_mean"] == pytest.approx(row["psnr_mean"], abs=1e-3)
        else:
            assert (row["identical"], row["largest_difference"]) == (True, 0.0)
            assert row["own_psnr_mean"] == row["psnr_mean"]
    assert (
        rows["flow_euler", "full"]["psnr_fine_mean"] > 0 < rows["unipc", "full"]["psnr_fine_mean"]
    )
    # calibration and full run, then the rows: twice under Euler, for both loops
    made = 2 * (2 * STEPS + 6 * 3) + (2 * STEPS + 4 * 3)
    solved = 2 * bench.settings["solution_calls"]  # once a scheduler
    assert len(calls) == 2 * (made + solved)


def test_the_bench_refuses_what_a_pipeline_does_not_have(model: ShapesWan) -> None:
    shared = {"model": model, "calibration": ["a"], "held_out": ["b"]}
    with pytest.raises(InputError, match="give no solver"):
        PipelineSetting(**shared, guidance=NoGuidance()).make_sampler()
    with pytest.raises(InputError, match="give no solver"):
        PipelineSetting(**shared).make_sampler(solver=FlowEuler(shift=5.0))


@pytest.mark.slow
def test_bench_command(tmp_path: Path, seeming_gpu: None) -> None:
    path = tmp_path / "pipeline.json"
    options = ["--prompts", "1", "--calls", "2", "--steps", "2", "--scheduler", "unipc"]
    options += ["--device", "cpu"]
    done = CliRunner().invoke(app, ["pipeline", *options, "--json", str(path)])
    assert done.exit_code == 0, done.output
    record = json.loads(path.read_text())
    assert record["command"].startswith(
        "erta bench pipeline --prompts 1 --calls 2 --scheduler unip"
    )
    assert [row["status"] for row in record["rows"]] == ["measured"] * 4 + ["refused"] * 2 + [
        "measured"
    ]
