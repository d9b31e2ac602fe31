import json

import pytest
import torch
from typer.testing import CliRunner

from erta_bench.ablation import run_ablation
from erta_bench.ablation._variants import make_choices, make_ladder, make_variants
from erta_bench.cli import app
from erta_bench.cli._options import choose_held_out, format_command
from erta_bench.overhead._overhead import calibrate_toy
from erta_bench.setting import PROFILE, Setting, _models, build_policy, read_prompts
from erta_framework import CFG, Sampler
from erta_framework.errors import InputError
from erta_framework.metrics import psnr, ssim
from erta_framework.sampling import solve
from erta_framework.testing import GaussianMixtureFlow

COMMON = {
    "name",
    "calls",
    "steps",
    "seconds",
    "speedup",
    "psnr_mean",
    "psnr_std",
    "ssim_mean",
    "seeds",
    "prompts",
}
CALIBRATION, HELD_OUT = ["a", "b"], ["c", "d", "e"]
STEPS, CALLS, SEED_SETS, BATCH, SUBSTEPS = 8, 5, 2, 2, 2


def toy() -> GaussianMixtureFlow:
    return GaussianMixtureFlow((3, 2, 12, 12))


def setting(model, **changes) -> Setting:
    given = {
        "model": model,
        "calibration": CALIBRATION,
        "held_out": HELD_OUT,
        "steps": STEPS,
        "batch_size": BATCH,
        "substeps": SUBSTEPS,
    }
    return Setting(**(given | changes))


@pytest.fixture(scope="module")
def measured():
    model = toy()
    bench = run_ablation(setting(model), calls=[CALLS], seed_sets=SEED_SETS, seed=3)
    return bench, model.calls


def row(bench, name):
    (found,) = [row for row in bench.rows if row["name"] == name]
    return found


def test_rows_of_the_paper_in_its_order_beside_plain_steps(measured):
    bench, _ = measured
    assert [r["name"] for r in bench.rows][:8] == [
        "full",
        "plain Euler",
        "plain Adams-Bashforth 2",
        "uniform",
        "+ offline policy",
        "+ timestep adjustment",
        "+ error rectification",
        "ertacache (recipe default)",
    ]


def test_every_open_choice_is_a_row_once(measured):
    bench, _ = measured
    names = [r["name"] for r in bench.rows if r["group"] in ("phi", "correction", "signal")]
    assert len(names) == len(set(names)) == 8 + 3 + 3
    settings = [r["policies"] for r in bench.rows if r["group"] == "phi"]
    assert len(set(settings)) == 8
    assert sum("form='difference'" in s for s in settings) == 4
    assert sum("network_time='actual'" in s for s in settings) == 4
    assert sum("ErrorLinearizer" in s for s in settings) == 4


def test_records_are_flat_and_complete(measured, tmp_path):
    bench, _ = measured
    read = json.loads(bench.write(tmp_path / "ablation.json").read_text())
    keys = set(read["rows"][0])
    assert keys >= COMMON
    for record in read["rows"]:
        assert set(record) == keys
        assert all(v is None or isinstance(v, str | int | float) for v in record.values())
        assert (record["seeds"], record["prompts"]) == (SEED_SETS, len(HELD_OUT))
        assert record["seconds"] > 0


def test_calls_are_those_the_network_counted(measured):
    bench, total = measured
    branches, batches = 2, 2
    assert row(bench, "full")["calls"] == STEPS
    assert row(bench, "plain Euler")["calls"] == row(bench, "uniform")["calls"] == CALLS
    ran = [r["calls"] for r in bench.rows if r["same_as"] is None]
    calibration = STEPS * branches  # one batch
    full_again = STEPS * branches * batches  # for the time alone
    solved = (STEPS * SUBSTEPS + STEPS * SUBSTEPS // 2) * branches * batches
    assert total == SEED_SETS * (sum(ran) * branches * batches + full_again + calibration + solved)


def test_numbers_are_those_of_a_hand_made_comparison(measured):
    bench, _ = measured
    quality, structure, fine, of_full = [], [], [], []
    for seed in (3, 10_003):
        samplers = [
            Sampler(num_steps=steps, guidance=CFG(scale=3.0), batch_size=BATCH)
            for steps in (STEPS, CALLS)
        ]
        full, plain = (one.sample(toy(), HELD_OUT, seed=seed).samples for one in samplers)
        exact = solve(samplers[0], toy(), HELD_OUT, seed=seed, substeps=SUBSTEPS).samples
        fine.append(psnr(plain, exact))
        of_full.append(psnr(full, exact))
        quality.append(psnr(plain, full))
        structure.append(ssim(plain, full))
    found = row(bench, "plain Euler")
    assert found["psnr_mean"] == torch.cat(quality).mean().item()
    assert found["psnr_std"] == torch.cat(quality).std(correction=0).item()
    assert found["ssim_mean"] == torch.cat(structure).mean().item()
    assert found["psnr_worst"] == torch.cat(quality).min().item()
    full_row = row(bench, "full")
    for measured_row, values in ((found, fine), (full_row, of_full)):
        assert measured_row["psnr_fine_mean"] == torch.cat(values).mean().item()
        assert measured_row["psnr_fine_std"] == torch.cat(values).std(correction=0).item()
        assert measured_row["psnr_fine_worst"] == torch.cat(values).min().item()
    assert bench.settings["solution_substeps"] == SUBSTEPS
    assert full_row["psnr_mean"] is None  # equal to itself: infinite
    assert (full_row["ssim_mean"], full_row["speedup"]) == (1.0, 1.0)
    assert row(bench, "uniform")["gain_mean"] == 0.0


def test_equal_rows_run_once_and_say_so(measured):
    bench, _ = measured
    shared = [r for r in bench.rows if r["same_as"] is not None]
    assert {r["name"] for r in shared} >= {"signal max, K/B", "K/B scalar"}
    for record in shared:
        other = row(bench, record["same_as"])
        assert record["policies"] == other["policies"]
        assert {k: record[k] for k in COMMON - {"name"}} == {k: other[k] for k in COMMON - {"name"}}


def test_settings_differ_where_rows_do(measured):
    bench, _ = measured
    ran = [(r["policies"], r["solver"], r["steps"]) for r in bench.rows if r["same_as"] is None]
    assert len(ran) == len(set(ran))


def test_choices_stand_at_the_middle_number_of_calls():
    rows = make_variants([25, 17, 12], 50)
    assert [r.budget for r in rows if r.group == "signal"] == [17] * 3
    assert len(rows) == 3 * len(make_ladder(25, 50)) + len(make_choices(17, 50))


def test_profile_is_put_where_it_is_asked_for():
    spec = {"skip_policy": {"profile": PROFILE, "calls": 5}}
    profile = calibrate_toy(STEPS, 2)
    first, second = build_policy(spec, profile), build_policy(spec, None)
    assert (first.name, first.calls, first.profile) == ("skip_policy", 5, profile)
    assert second.profile is None
    assert build_policy("residual_reuse", profile).name == "residual_reuse"
    assert build_policy("residual_reuse", None) is not build_policy("residual_reuse", None)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"held_out": []}, {}, "0 measured"),
        ({"calibration": ["x", "c"]}, {}, "'c' is calibrated on and measured"),
        ({}, {"calls": [9]}, r"calls is \[9\]; give numbers from 2 to the 8"),
        ({}, {"calls": []}, r"calls is \[\]"),
        ({}, {"calls": [4], "seed_sets": 0}, "0 seed sets"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_runs(changes, arguments, message):
    model = toy()
    with pytest.raises(InputError, match=message):
        run_ablation(setting(model, **changes), **arguments)
    assert model.calls == 0


class DemoToy(GaussianMixtureFlow):
    def demo_prompts(self):
        return [f"calibrate {k}" for k in range(6)], [f"test {k}" for k in range(8)]


class OneModel:
    def __init__(self, model) -> None:
        self.model = model

    def load(self, name):
        return lambda: self.model


def test_quick_command(monkeypatch, tmp_path, seeming_gpu):
    monkeypatch.setattr(_models, "models", lambda: OneModel(DemoToy((3, 2, 12, 12))))
    path = tmp_path / "quick.json"
    options = ["ablation", "--quick", "--calls", "6", "--steps", "10", "--json", str(path)]
    options += ["--device", "cpu", "--substeps", "2"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "uniform" in result.output
    record = json.loads(path.read_text())
    assert record["command"].startswith("erta bench ablation")
    assert record["command"].endswith(" --quick --device cpu")
    assert {r["prompts"] for r in record["rows"]} == {4}
    assert {r["seeds"] for r in record["rows"]} == {1}
    assert {r["budget"] for r in record["rows"]} == {None, 6}


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("erta_framework.sampling._device.list_accelerators", lambda: ("cpu",))
    for command in ("ablation", "budgets", "lambda", "batch", "policies", "peers", "fitted"):
        result = CliRunner().invoke(app, [command, "--device", "cuda"])
        assert isinstance(result.exception, InputError)
        assert "--device cuda: accelerator 'cuda' is not available; use auto, cpu" in str(
            result.exception
        )


def test_more_prompts_than_the_model_has_are_refused(monkeypatch):
    monkeypatch.setattr(_models, "models", lambda: OneModel(DemoToy((3, 2, 12, 12))))
    for asked, said in (("9", "8 held-out prompts"), ("no.txt", "there is no file no.txt")):
        result = CliRunner().invoke(app, ["ablation", "--prompts", asked])
        assert isinstance(result.exception, InputError)
        assert said in str(result.exception)


def test_prompts_of_a_file_are_measured_and_are_not_calibrated_on(tmp_path):
    file = tmp_path / "own prompts.txt"
    file.write_text("one\n\ntwo\n")
    opened = read_prompts("toy", DemoToy((3, 2, 12, 12)))
    assert choose_held_out(opened, str(file)) == ["one", "two"]
    assert choose_held_out(opened, "9", repeat=True) == [*opened.held_out, "test 0"]
    with pytest.raises(InputError, match="--prompts 0: give 1 or more"):
        choose_held_out(opened, "0")
    named = format_command("policies", "toy", calls=[3], rows=None, scheduler="", prompts=str(file))
    assert named.endswith(f"--prompts '{file}'")


def test_a_model_without_prompts_is_refused():
    with pytest.raises(InputError, match="'plain' has no demo_prompts"):
        read_prompts("plain", toy())
