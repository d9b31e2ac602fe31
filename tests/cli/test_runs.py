from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from erta_framework import CFG, FlowEuler, Profile, Sampler

CONFIG = """
model: toy-video
steps: 8
batch_size: 2
policies:
  - ertacache: {profile: own.st, calls: 4}
"""


def test_sample_writes_what_the_sampler_gives(erta):
    done = erta(
        "sample", "model=toy-video", "steps=4", "seed=7", "solver={flow_euler: {shift: 2.0}}",
        "guidance.cfg.scale=1.5", "-p", "one", "-p", "another", "-o", "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    from erta_toy_video import ToyVideo

    sampler = Sampler(num_steps=4, solver=FlowEuler(shift=2.0), guidance=CFG(scale=1.5))
    expected = sampler.sample(ToyVideo(), ["one", "another"], seed=7).samples
    assert torch.equal(load_file("out/samples.safetensors")["samples"], expected)
    with Image.open("out/gifs/000007-one.gif") as gif:
        assert (gif.n_frames, gif.size) == (4, (96, 96))
    assert "8" in done.output
    assert "2 samples, 8 network calls" in done.output


def test_trace_has_one_line_a_step_and_is_replaced_by_the_next_run(erta):
    for _ in range(2):
        done = erta(
            "sample", "model=toy-video", "steps=5", "batch_size=1", "policies=[sometimes]",
            "--no-gifs", "-p", "one", "-p", "two", "-o", "out",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in Path("out/trace.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events.count("run_start") == 1
    assert events.count("step") == 10
    computed = [call["computed"] for line in lines[1:6] for call in line["calls"]]
    assert computed == [True, True, False, False, True, True, False, False, True, True]
    assert not Path("out/gifs").exists()


def test_prompts_from_a_file(erta):
    Path("prompts.txt").write_text("first\n\n  second \n")
    done = erta("sample", "model=toy-video", "steps=2", "prompts_file=prompts.txt", "output=here")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path("here/gifs").iterdir()) == [
        "000000-first.gif",
        "000001-second.gif",
    ]


def test_config_calibrates_plans_and_samples(erta):
    Path("run.yaml").write_text(CONFIG)
    calibrated = erta("calibrate", "run.yaml")
    assert calibrated.exit_code == 0, calibrated.output
    made = Profile.load("own.st")
    assert (made.kind, made.samples) == ("residual_profiler", 2)  # the model's own prompts
    sampled = erta("sample", "run.yaml", "-p", "one", "--no-gifs", "-o", "out")
    assert sampled.exit_code == 0, sampled.output
    assert "8 network calls" in sampled.output  # 4 steps, two branches
    overridden = erta(
        "sample", "run.yaml", "policies.0.ertacache.calls=2", "-p", "one", "--no-gifs", "-o", "out"
    )
    assert "4 network calls" in overridden.output


def test_calibrate_does_not_replace_a_profile_unasked(erta, profile):
    before = Path(profile).read_bytes()
    arguments = ("calibrate", "model=toy-video", "steps=8", "--policy", "ertacache", "-o", profile)
    again = erta(*arguments, "seed=5")
    assert again.exit_code == 2
    assert "toy.st exists; give --force" in again.output
    assert Path(profile).read_bytes() == before
    assert erta(*arguments, "seed=5", "--force").exit_code == 0
    assert Path(profile).read_bytes() != before


def test_a_profiler_that_needs_prompts_of_its_own_is_given_them(erta):
    toy = ("calibrate", "model=toy-video", "steps=1")
    done = erta(*toy, "--policy", "prompt_threshold", "-o", "words.st")
    assert done.exit_code == 0, done.output
    assert Profile.load("words.st").statistics["samples"].tolist() == [6.0, 7.0]
    done = erta(*toy, "--policy", "branch_substitute", "-o", "book.st")
    assert done.exit_code == 0, done.output
    assert Profile.load("book.st").statistics["samples"].tolist() == [2.0]


def test_calibrate_by_profiler_name(erta):
    done = erta(
        "calibrate", "model=toy-video", "steps=3", "--profiler", "residual_profiler",
        "-p", "a", "-p", "b", "-p", "c", "-o", "p.st",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert Profile.load("p.st").samples == 3


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("sample", "nope.yaml", "-p", "x"), 2, "cannot read the configuration nope.yaml"),
        (("sample", "a.yaml", "b.yaml"), 2, "got 2 configuration files (a.yaml, b.yaml)"),
        (("sample", "model=toy-video", "stepz=3"), 2, "did you mean 'steps'?"),
        (("sample", "model=toy-video", "steps=many"), 2, "steps is 'many' of type str"),
        (("sample", "model=toy-video", "steps=2"), 2, "no prompts; give --prompt TEXT"),
        (("sample", "model=toy-vido", "-p", "x"), 1, "did you mean 'toy-video'?"),
        (("sample", "model=not-a-model", "-p", "x"), 1, "lacks something of"),
        (("sample", "model=toy-video", "prompts_file=no.txt"), 2, "no.txt"),
        (("calibrate", "model=toy-video"), 1, "nothing to calibrate (no policies)"),
        (("calibrate", "policies=[sometimes]"), 1, "nothing to calibrate (sometimes)"),
        (("calibrate", "--policy", "ertacash"), 1, "did you mean 'ertacache'"),
        (("explain", "policies=[{ertacache: {profile: no.st, calls: 3}}]"), 1, "no profile at no"),
    ],
)
def test_errors_are_one_message(erta, arguments, status, message):
    done = erta(*arguments)
    assert done.exit_code == status, done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert "add --debug" in done.output


def test_notes_of_an_error_are_shown(erta):
    done = erta("explain", "policies=[{skip_policy: {evenly: 3, every: 2}}]")
    assert done.exit_code == 1
    assert "evenly, every" in done.output
    assert "in the configuration at policies.0.skip_policy" in done.output


@pytest.mark.parametrize("position", [0, 2])
def test_debug_lets_the_error_through(erta, position):
    arguments = ["explain", "stepz=3"]
    arguments.insert(position, "--debug")
    done = erta(*arguments)
    assert type(done.exception).__name__ == "ConfigError"
    assert "error:" not in done.output
