"""`erta compare`: what it measures, what it adds for fairness, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from erta_framework import Profile, Sampler
from erta_framework.cli import needs_profile
from erta_framework.metrics import psnr
from erta_framework.sampling import solve

TOY = ("compare", "model=toy-video", "steps=8", "-o", "out")
EVERY = "{skip_policy: {every: 2}}"


def rows() -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(Path("out/results.json").read_text())["rows"]}


def test_files_and_policies_are_compared_on_both_axes_at_the_work_that_they_do(erta):
    from erta_toy_video import ToyVideo

    Path("mine.yaml").write_text("policies: [{skip_policy: {every: 4}}]\n")
    done = erta(*TOY, "mine.yaml", "--policy", EVERY, "-p", "one", "-p", "two", "seed=3")
    assert done.exit_code == 0, done.output
    found = rows()
    plain = ["5 plain steps", "3 plain steps"]
    assert list(found) == ["Full run", "mine", "skip_policy every=2", *plain]
    # every fourth, every second, and the last one
    assert [row["calls"] for row in found.values()] == [16, 6, 10, 10, 6]
    assert [row["work"] * 8 for row in found.values()] == [8, 3, 5, 5, 3]
    model = ToyVideo()
    full = Sampler(num_steps=8)
    exact = solve(full, model, ["one", "two"], seed=3, substeps=4).samples
    samples = full.sample(model, ["one", "two"], seed=3).samples
    expected = float(psnr(samples, exact).mean())
    assert found["Full run"]["exact_psnr_mean"] == pytest.approx(expected)
    assert found["3 plain steps"]["exact_psnr_mean"] < found["5 plain steps"]["exact_psnr_mean"]
    assert "not equal work: mine did that of 3.0" in " ".join(done.output.split())
    page = Path("out/report.html").read_text()
    assert "PSNR to the exact solution" in page
    assert "Not equal work" in page
    assert page.count("<tr") > 5


def test_equal_work_is_said_and_the_exact_axis_can_be_left_out(erta):
    again = "{skip_policy: {steps: [0, 2, 4, 6, 7]}}"
    done = erta(*TOY, "--policy", EVERY, "--policy", again, "-p", "one", "--no-exact")
    assert done.exit_code == 0, done.output
    assert "not equal work" not in done.output
    page = Path("out/report.html").read_text()
    assert "the work of 5 network calls a branch, within 5 %" in page
    assert "exact solution" not in page
    assert all(row["exact_psnr_mean"] is None for row in rows().values())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"planned_schedule": {"budget": {"calls": 4}}}, True),
        ({"magcache": {"budget": {"calls": 4}}}, True),  # nor a published table
        ({"teacache_schedule": {"budget": {"calls": 4}}}, True),  # cannot be built without
        ({"procache": {"budget": {"calls": 4}}}, False),  # reads one, and plans without
        ({"skip_policy": {"every": 2}}, False),
        # these fail, and a profile would not help
        ({"skip_policy": {"every": 2, "evenly": 3}}, False),
        ({"l2c": {"budget": {"calls": 4}}}, False),
        ({"magcache": {"model": "flux_dev", "ratios": [1.0]}}, False),
    ],
)
def test_only_what_a_profile_would_cure_needs_a_profile(spec, expected):
    assert needs_profile(spec, 8) is expected


def test_a_policy_without_its_profile_is_calibrated_on_other_prompts(erta):
    asked = ("--policy", "planned_schedule", "--policy", "fora", "--calls", "4")
    done = erta(*TOY, *asked, "--no-exact")
    assert done.exit_code == 0, done.output
    (file,) = Path("out/profiles").iterdir()
    assert Profile.load(file).samples == 2
    found = rows()
    assert found["planned_schedule calls=4"]["work"] == 0.5
    assert "4 plain steps" in found


def test_runs_that_decide_by_values_are_counted_as_they_run(erta):
    done = erta(*TOY, "--policy", "sometimes", "-p", "one", "--no-exact")
    assert done.exit_code == 0, done.output
    assert list(rows()) == ["Full run", "sometimes", "4 plain steps"]


def test_other_steps_and_solvers_stand_in_their_files(erta):
    Path("few.yaml").write_text("steps: 4\nsolver: flow_ab2\n")
    Path("all.yaml").write_text("steps: 8\n")
    done = erta("compare", "all.yaml", "few.yaml", "--model", "toy-video", "-p", "x", "-o", "out")
    assert done.exit_code == 0, done.output
    found = rows()
    assert found["few"]["calls"] == 8
    assert found["all"]["psnr_mean"] is None  # the same as the full run: infinite
    same = torch.isclose(torch.tensor(found["few"]["work"]), torch.tensor(0.5))
    assert bool(same)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to compare; give configuration files, or a policy"),
        (("a.yaml", "b.yaml"), "seam is 'latent' in a.yaml and 'trunk' in b.yaml"),
        (("gone.yaml",), "cannot read the configuration gone.yaml"),
        (("toy.safetensors",), "give it as --profile toy.safetensors"),
        (("--policy", "{skip_policy: {evry: 2}}"), "did you mean 'every'"),
        (("--policy", "sometimes", "--calls", "4"), "none of these policies takes a budget"),
        (("--policy", EVERY, "--height", "16"), "--height: only with --pipeline"),
        (("--policy", EVERY, "-p", "x", "--prompts", "p.txt"), "give one of them"),
    ],
)
def test_what_cannot_be_compared_is_refused(erta, arguments, message):
    Path("a.yaml").write_text("policies: [fora]\n")
    Path("b.yaml").write_text("policies: [fora]\nseam: trunk\n")
    done = erta(*TOY, *arguments)
    assert done.exit_code in (1, 2), done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert not Path("out/report.html").exists()


@pytest.mark.parametrize(
    ("shared", "clock", "said"),
    [(True, "processor", "Seconds are of processor time"), (False, "wall", "are wall seconds")],
)
def test_seconds_are_of_the_processor_where_the_machine_is_shared(
    erta, monkeypatch, shared, clock, said
):
    monkeypatch.setattr("erta_framework.cli._compare.is_shared", lambda: shared)
    given = ("--policy", EVERY, "-p", "one", "--no-exact", "--device", "cpu")
    done = erta(*TOY, *given)
    assert done.exit_code == 0, done.output
    assert ("processor seconds, the machine is shared" in done.output) is shared
    record = json.loads(Path("out/results.json").read_text())
    assert record["clock"] == clock
    assert said in Path("out/report.html").read_text()
    full, every, _ = record["rows"]
    key = "processor_seconds" if shared else "seconds"
    assert every["speedup"] == pytest.approx(full[key] / every[key])
