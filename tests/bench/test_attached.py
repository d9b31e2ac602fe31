"""The overhead of an attached engine, measured on pipelines whose network is free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("diffusers")

from erta_bench.cli import app
from erta_bench.overhead.attached import build_policies_for, make_free_pipeline, time_attachment
from erta_framework.errors import InputError
from erta_integrations.diffusers import attach

STEPS = 4


@pytest.mark.parametrize(("name", "branches"), [("wan-euler", 1), ("wan-euler", 2), ("lumina2", 2)])
def test_rows(name: str, branches: int) -> None:
    row = time_attachment(name, 1, branches, STEPS, repeats=2)
    names = {"wan-euler": "cond, uncond", "lumina2": "call0, call1"}[name]
    assert row["branch_names"] == (names if branches == 2 else names.partition(",")[0])
    assert (row["policies"], row["branches"], row["steps"]) == (1, branches, STEPS)
    assert row["calls"] == STEPS // 2
    assert row["us_per_step_plain"] > 0
    for key in ("us_per_step", "us_per_step_least", "us_per_step_processor"):
        assert isinstance(row[key], float)


def test_the_network_costs_nothing_and_an_engine_that_skips_nothing_changes_nothing() -> None:
    made = make_free_pipeline("wan-euler", STEPS, 2)
    inside: list[int] = []
    made.pipe.transformer.proj_out.register_forward_hook(lambda *_: inside.append(1))
    plain = made.run()
    with attach(made.pipe, build_policies_for(0, made)) as run:
        assert torch.equal(made.run(), plain)
    assert inside == []
    assert run.traces[0].network_calls == 2 * STEPS


def test_four_policies_are_four_parts() -> None:
    made = make_free_pipeline("wan-euler", STEPS, 2)
    assert [policy.name for policy in build_policies_for(4, made)] == [
        "skip_policy",
        "residual_reuse",
        "timestep_adjuster",
        "error_linearizer",
    ]


@pytest.mark.parametrize(("name", "branches"), [("flux", 1), ("wan-euler", 3)])
def test_what_was_not_prepared_is_refused(name: str, branches: int) -> None:
    with pytest.raises(InputError, match=f"{name}.* with {branches} branches"):
        make_free_pipeline(name, STEPS, branches)


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "attach.json"
    options = ["--pipeline", "wan-euler", "--steps", "4", "--repeats", "1", "--json", str(path)]
    result = CliRunner().invoke(app, ["attach-overhead", *options])
    assert result.exit_code == 0, result.output
    record = json.loads(path.read_text())
    assert record["command"] == (
        "erta bench attach-overhead --pipeline wan-euler --steps 4 --repeats 1"
    )
    assert {(r["branches"], r["policies"]) for r in record["rows"]} == {
        (branches, count) for branches in (1, 2) for count in (0, 1, 4)
    }
