import json

import pytest
import torch
from typer.testing import CliRunner

from erta_bench.cli import app
from erta_bench.overhead import SyncCounter, measure_overhead, measure_sites
from erta_bench.overhead._overhead import (
    DecidesByValue,
    build_toy_policies,
    count_syncs,
    make_guidance,
    make_toy_network,
    make_toy_request,
    run_bare_loop,
)
from erta_bench.overhead._sites import PLANS, IdleNetwork, make_run
from erta_framework import Engine, FlowEuler, SamplingLoop
from erta_framework.errors import InputError

STEPS = 6


@pytest.fixture(scope="module")
def bench():
    return measure_overhead(steps=STEPS, repeats=3)


@pytest.mark.parametrize("branches", [1, 2])
def test_the_bare_loop_computes_what_the_engine_does(branches):
    network, request = make_toy_network(), make_toy_request(STEPS)
    loop = SamplingLoop(Engine([]), FlowEuler(), make_guidance(branches))
    assert torch.equal(run_bare_loop(network, request, branches), loop.run(network, request).sample)


def test_rows(bench, tmp_path):
    rows = json.loads(bench.write(tmp_path / "overhead.json").read_text())["rows"]
    timed = [r for r in rows if r["name"] == "overhead"]
    assert [(r["branches"], r["policies"]) for r in timed] == [
        (1, 0),
        (1, 1),
        (1, 4),
        (2, 0),
        (2, 1),
        (2, 4),
    ]
    for record in timed:
        assert isinstance(record["us_per_step"], float)
        assert record["us_per_step_engine"] > 0 < record["us_per_step_bare"]
        assert record["calls"] == (STEPS if record["policies"] == 0 else STEPS // 2)


def test_a_static_schedule_never_waits_for_the_device_and_the_control_does(bench):
    static, control = bench.rows[-2:]
    assert (static["name"], static["static_syncs"], static["policies"]) == ("static_syncs", 0, 4)
    assert control["syncs"] >= STEPS - 1


def test_four_policies_are_four_parts():
    policies = build_toy_policies(4, STEPS, 2)
    assert [p.name for p in policies] == [
        "skip_policy",
        "residual_reuse",
        "timestep_adjuster",
        "error_linearizer",
    ]
    assert count_syncs(policies, STEPS).total == 0


def test_the_control_reads_once_in_every_step_that_may_reuse():
    assert count_syncs([DecidesByValue()], STEPS).counts["_local_scalar_dense"] >= STEPS - 1


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.isfinite().all()),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.equal(x, x + 1),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: x.unique(),
    ],
)
def test_every_way_of_waiting_is_counted(read):
    x = torch.tensor([1.0, -2.0, 3.0])
    with SyncCounter() as syncs:
        read(x)
    assert syncs.total == 1, str(syncs)


def test_arithmetic_and_indexing_by_number_are_not_counted():
    x = torch.arange(6.0).reshape(2, 3)
    with SyncCounter() as syncs:
        y = (x @ x.T + x[1, 2]).to(torch.float64).abs().mean()
        torch.where(y > 0, y, torch.zeros_like(y)).isfinite().all()
        x.to(x.dtype)[:, 1:].clone()
    assert syncs.total == 0, str(syncs)
    y.item()
    assert syncs.total == 0  # nothing is watched behind the block


def test_three_branches_are_refused():
    with pytest.raises(InputError, match="branches is 3"):
        make_guidance(3)


def test_command(tmp_path):
    path = tmp_path / "overhead.json"
    options = ["overhead", "--steps", "4", "--repeats", "1", "--json", str(path)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    record = json.loads(path.read_text())
    assert record["command"] == "erta bench overhead --steps 4 --repeats 1"
    assert {"policies", "branches", "us_per_step"} <= set(record["rows"][0])


def test_every_plan_of_sites_is_measured_beside_the_same_network():
    rows = measure_sites(places=3, steps=3, repeats=2).rows
    assert [row["name"] for row in rows] == [
        "nobody selected",
        "selected, no action",
        "keep",
        "reuse",
        "at, every third step",
    ]
    assert {row["places"] for row in rows} == {3}
    assert all(row["us_bare"] > 0.0 for row in rows)
    assert {row["us_bare"] for row in rows} == {rows[0]["us_bare"]}


def test_sites_are_reused_in_the_plan_of_that_name():
    network = IdleNetwork(4)
    ran = []
    network.blocks[1].attn.register_forward_pre_hook(lambda *_: ran.append(1))
    for name, runs in (("keep", 5), ("reuse", 5), ("selected, no action", 5)):
        ran.clear()
        make_run(network, PLANS[name](), 5)()
        assert len(ran) == runs  # hooks run around the gate
        assert not any("_erta_gate" in vars(module) for module in network.modules())


def test_the_command_of_sites_prints_a_table(tmp_path):
    options = ["--places", "2", "--steps", "2", "--repeats", "1", "--json", str(tmp_path / "a")]
    done = CliRunner().invoke(app, ["sites", *options])
    assert done.exit_code == 0, done.output
    assert "erta bench sites" in done.output
    assert len(json.loads((tmp_path / "a").read_text())["rows"]) == len(PLANS)
