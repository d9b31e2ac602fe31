"""Outputs are tried before a run begins, and a run that fails leaves older ones as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

RUNS = {
    "sample": ("sample", "model=toy-video", "steps=2", "-p", "x", "-o", "file/out"),
    "job": (
        *("sample", "model=toy-video", "steps=2", "-p", "x", "-o", "file/out", "--resume"),
        *("fabric.accelerator=cpu", "fabric.devices=1"),
    ),
    "calibrate": ("calibrate", "model=toy-video", "--policy", "ertacache", "-o", "file/p.st"),
    "measure": ("plan", "model=toy-video", "--profile", "toy.st", "--measure", "-o", "file/p.st"),
    "plot": ("plan", "model=toy-video", "--profile", "toy.st", "--plot", "file/front.png"),
    "export": (
        *("plan", "--profile", "toy.st", "--calls", "4", "--export", "magcache"),
        *("--output", "file/plan.json"),
    ),
    "merge": ("profile", "merge", "toy.st", "toy.st", "-o", "file/p.st"),
    "demo": ("demo", "--model", "toy-video", "--steps", "8", "--calls", "4", "-o", "file/out"),
    "bench": ("bench", "overhead", "--steps", "2", "--repeats", "1", "--json", "file/b.json"),
    "bench of a row": ("bench", "simulate", "--ranks", "2", "--json", "file/b.json"),
    "bench of a page": ("bench", "policies", "--report", "file/page"),
}


@pytest.fixture
def idle(profile, monkeypatch):
    """The toy model, whose network must not run."""
    import erta_toy_video

    def run(*_):
        pytest.fail("the network ran")

    monkeypatch.setattr(erta_toy_video.ToyVideo, "__call__", run)
    return profile


@pytest.mark.parametrize("name", RUNS)
def test_an_output_that_cannot_be_written_is_found_before_sampling(erta, idle, name):
    Path("file").touch()
    before = sorted(os.listdir("."))
    done = erta(*RUNS[name])
    assert done.exit_code == 2, done.output
    assert "cannot write the" in done.output
    assert "file is no folder; nothing was sampled: give another path" in done.output
    assert sorted(os.listdir(".")) == before


@pytest.mark.parametrize("name", ["calibrate", "bench"])
def test_a_folder_in_place_of_a_file(erta, idle, name):
    Path("out").mkdir()
    arguments = [*RUNS[name][:-1], "out"]
    if name == "calibrate":
        arguments.append("--force")
    done = erta(*arguments)
    assert done.exit_code == 2, done.output
    assert "it is a folder; nothing was sampled" in done.output


def test_a_run_that_fails_leaves_the_outputs_of_the_one_before(erta, monkeypatch):
    arguments = ("sample", "model=toy-video", "steps=3", "-p", "one", "-o", "out")
    assert erta(*arguments).exit_code == 0
    files = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert {path.name for path in files} == {"trace.jsonl", "samples.safetensors", "000000-one.gif"}
    import erta_toy_video

    network, calls = erta_toy_video.ToyVideo.__call__, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return network(*arguments)

    monkeypatch.setattr(erta_toy_video.ToyVideo, "__call__", fail)
    done = erta(*arguments)
    assert done.exit_code == 1
    assert len(calls) == 4
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == files
    assert not list(Path("out").glob(".*"))
    assert erta(*arguments, "seed=5").exit_code == 0
    lines = [json.loads(line) for line in Path("out/trace.jsonl").read_text().splitlines()]
    assert lines[-1] == {"event": "run_end", "error": None}
    assert len(load_file("out/samples.safetensors")["samples"]) == 1


def test_a_run_that_is_refused_makes_no_folder(erta):
    assert erta("sample", "model=no-such-model", "-p", "one", "-o", "new/out").exit_code == 1
    assert not Path("new").exists()


@pytest.mark.parametrize("prompt", ["字" * 300, "a" * 3000, "\U0001d54f" * 100])
def test_a_long_prompt_names_a_picture(erta, prompt):
    done = erta("sample", "model=toy-video", "steps=2", "seed=99999999999", "-p", prompt, "-o", "o")
    assert done.exit_code == 0, done.output
    (gif,) = Path("o/gifs").iterdir()
    assert gif.name.startswith("99999999999-")
    assert len(os.fsencode(gif.name)) <= 210
