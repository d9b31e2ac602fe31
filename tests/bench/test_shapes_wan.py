"""Training, calibration and the check of shapes-wan."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from erta_bench.shapes_wan import train
from erta_bench.shapes_wan.calibrate import calibrate_shapes_wan
from erta_bench.shapes_wan.check import check_shapes_wan, choose_prompts
from erta_bench.training import TrainingOptions
from erta_framework import Profile
from erta_framework.budgets import list_measured_units
from erta_integrations.shapes_wan import load
from erta_integrations.shapes_wan.data import all_prompts
from erta_integrations.shapes_wan.model import PROFILE, ShapesWan, save_weights


# ------------------------------------------------------------------------ training
class Interrupted(Exception):
    pass


def trained(folder, steps: int = 4) -> dict[str, torch.Tensor]:
    options = TrainingOptions(
        steps=steps, batch=2, folder=folder, output=folder / "weights.safetensors", save_every=2
    )
    train.train(options)
    return load_file(options.output)


def test_an_interrupted_run_continues_as_if_it_had_not_been(tmp_path, monkeypatch):
    straight = trained(tmp_path / "straight")
    loss = train.compute_flow_loss
    steps = []

    def interrupted(model, options, step, device):
        steps.append(step)
        if step == 3:
            raise Interrupted
        return loss(model, options, step, device)

    with monkeypatch.context() as patch:
        patch.setattr(train, "compute_flow_loss", interrupted)
        with pytest.raises(Interrupted):
            trained(tmp_path / "resumed")
    assert steps == [0, 1, 2, 3]
    assert not (tmp_path / "resumed" / "weights.safetensors").exists()
    checkpoints = [
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "resumed")
    ]
    assert any(not torch.equal(checkpoints[0][k], checkpoints[1][k]) for k in checkpoints[0])
    resumed = trained(tmp_path / "resumed")
    assert set(resumed) == set(straight)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    first, second = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "resumed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_batch_follows_from_seed_and_step():
    torch.manual_seed(0)
    model, device = ShapesWan(), torch.device("cpu")
    options = replace(train.DEFAULTS, batch=2)
    with torch.no_grad():
        losses = [train.compute_flow_loss(model, options, k, device).item() for k in (7, 7, 8)]
    assert losses[0] == losses[1] != losses[2]


# ----------------------------------------------------------------------- the check
def test_chosen_prompts_take_every_prompt_once_a_round():
    assert sorted(choose_prompts(72)) == sorted(all_prompts())
    assert choose_prompts(144) == choose_prompts(72) * 2
    assert len(set(choose_prompts(10))) == 10


def test_an_untrained_model_fails_the_check(tmp_path, capsys):
    torch.manual_seed(0)
    save_weights(ShapesWan(), tmp_path / "untrained.safetensors", {})
    path = tmp_path / "check.json"
    weights = str(tmp_path / "untrained.safetensors")
    options = ["--prompts", "6", "--steps", "2", "--weights", weights, "--json", str(path)]
    assert check_shapes_wan(options) == 1
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["color", "shape", "direction"]
    assert not all(row["passed"] for row in rows)
    assert all(row["rendered"] == 1.0 for row in rows)
    assert "asked for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--prompts", "0"], "at least 1"), (["--weights", "nowhere"], "no file nowhere")],
)
def test_wrong_options_of_the_check_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        check_shapes_wan(options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_model_shows_what_it_is_asked_for(tmp_path):
    path = tmp_path / "check.json"
    status = check_shapes_wan(["--prompts", "36", "--json", str(path)])
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    for name, target in {"color": 0.95, "shape": 0.80, "direction": 0.90}.items():
        assert rows[name]["accuracy"] >= target
        assert rows[name]["samples"] == 36
    assert status == 0


# ---------------------------------------------------------------------- the profile
@pytest.mark.slow
def test_the_profile_can_be_made_again(tmp_path):
    written = calibrate_shapes_wan(
        ["--steps", "3", "--prompts", "1", "--output", str(tmp_path / "made.safetensors")]
    )
    made = Profile.load(written)
    assert (made.samples, made.fingerprint["num_steps"]) == (1, "3")
    assert list_measured_units(made) == list_measured_units(Profile.load(PROFILE))
    assert made.provenance["weights"] == load().weights_hash
    assert made.provenance["seeds"] == "1000..1000"
