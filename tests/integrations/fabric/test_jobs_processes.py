"""Jobs over real processes: Fabric's own launch, torchrun, `fabric run`, SLURM, and none at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from erta_framework import Profile
from erta_framework.cli import app
from erta_integrations.fabric.jobs import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
LIMIT = 240
"""Seconds after which a command and all it started are killed."""

MODEL = '''
import os
import time

import torch


class ToyVideo:
    """A smooth velocity; says in a file which prompts it was given."""

    latent_shape = (3, 4, 12, 12)

    def fingerprint(self):
        return {"network": "ToyVideo"}

    def encode(self, prompts):
        if "impossible" in prompts:
            raise ValueError("no such thing")
        log = os.environ.get("TOY_LOG")
        if log:
            handle = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
            os.write(handle, (prompts[0] + "\\n").encode())
            os.close(handle)
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        return torch.tensor([[len(prompt) / 20.0] for prompt in prompts])

    def __call__(self, x, timestep, embeds):
        time = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        return x - 0.3 * torch.tanh(x) * time + embeds.reshape(-1, 1, 1, 1, 1) * (1 - time)
'''
CONFIG = "model: toy-video\nsteps: 6\nseed: 100\nfabric: {accelerator: cpu}\n"
SRUN = """#!/usr/bin/env bash
# a SLURM of one machine and two tasks
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=1 SLURM_JOB_ID=20417 SLURM_NODEID=0
export SLURM_NODELIST=127.0.0.1 SLURM_JOB_NAME=videos
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & other=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; code=$?
wait "$other" && exit "$code"
"""
COUNT = 7


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a toy model, a configuration, prompts and an `srun`."""
    site, programs, work = (tmp_path / name for name in ("site", "programs", "work"))
    info = site / "erta_toy-1.2.3.dist-info"
    for folder in (info, programs, work):
        folder.mkdir(parents=True)
    (site / "erta_toy_jobs.py").write_text(MODEL)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-toy\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(
        "[erta_framework.models]\ntoy-video = erta_toy_jobs:ToyVideo\n"
    )
    (programs / "srun").write_text(SRUN)
    (programs / "srun").chmod(0o755)
    for name in [n for n in os.environ if n.startswith(("SLURM_", "LT_", "ERTA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TOY_LOG", str(work / "log"))
    (work / "run.yaml").write_text(CONFIG)
    (work / "prompts.jsonl").write_text(prompts())
    yield work
    sys.modules.pop("erta_toy_jobs", None)


def prompts(last: str = "a prompt of seven") -> str:
    lines = [{"prompt": "word " * (k + 1)} for k in range(COUNT - 1)]
    lines[1] |= {"seed": 7, "steps": 4}
    lines[3] |= {"guidance": 1.5}
    return "".join(json.dumps(line) + "\n" for line in [*lines, {"prompt": last}])


def start(command: Sequence[str] | str, place: Path, **environment: str) -> subprocess.Popen[str]:
    """A command in a session of its own, so that it can be killed with all that it starts."""
    return subprocess.Popen(
        command,
        cwd=place,
        shell=isinstance(command, str),
        executable="/bin/bash" if isinstance(command, str) else None,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a command ended and what it printed."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        pytest.fail(f"{process.args} took more than {LIMIT} s:\n{output}")
    finally:
        kill(process)
    return process.returncode, output


def kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run(command: Sequence[str] | str, place: Path, status: int = 0, **environment: str) -> str:
    code, output = finished(start(command, place, **environment))
    assert code == status, f"{command} ended with {code}:\n{output}"
    return output


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every sample's file, after reading each."""
    store = Store(folder)
    found = {}
    for index in sorted(store.committed(0)):
        assert store.load(index)["sample"].isfinite().all()
        found[str(index)] = hashlib.sha256(store.path(index).read_bytes()).hexdigest()
    return found


def erta(command: str, status: int = 0) -> str:
    """A command in this process, which has imported everything."""
    name, *words = shlex.split(command)
    assert name == "erta"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status, done.output
    return " ".join(done.output.split())


def reference(place: Path) -> dict[str, str]:
    """What one process makes."""
    erta("erta sample run.yaml --prompts prompts.jsonl -o one --no-gifs")
    made = hashes(place / "one")
    assert len(made) == COUNT
    (place / "log").unlink()
    return made


def begun(place: Path) -> Counter[str]:
    return Counter((place / "log").read_text().splitlines())


def workers(folder: Path) -> int:
    """How many processes made samples."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    # one of which only the file was left has none
    return len({line["worker"] for line in lines if line["event"] == "done" and "worker" in line})


def test_one_two_and_three_processes_make_the_same_bytes(place):
    made = reference(place)
    three = run(
        "erta sample run.yaml fabric.devices=3 fabric.strategy=ddp --prompts prompts.jsonl"
        " -o three --no-gifs --log-json",
        place,
        TOY_SECONDS="0.3",
    )
    assert hashes(place / "three") == made
    assert workers(place / "three") == 3
    assert max(begun(place).values()) == 1
    events = [json.loads(line) for line in three.splitlines() if line.startswith("{")]
    assert sum(e["event"] == "done" for e in events) == COUNT  # rank 0 speaks, once for all
    assert (events[-1]["event"], events[-1]["done"], events[-1]["failed"]) == ("end", COUNT, [])
    # torchrun, and a prompt that cannot be sampled
    (place / "prompts.jsonl").write_text(prompts(last="impossible"))
    command = (
        'torchrun --nproc-per-node=2 --master-port=29431 "$(which erta)" sample run.yaml'
        " --prompts prompts.jsonl -o two --no-gifs"
    )
    said = run(command, place, status=1, TOY_SECONDS="0.3")
    assert "sample 6 failed: ValueError: no such thing" in said
    assert hashes(place / "two") == {k: v for k, v in made.items() if k != "6"}
    assert workers(place / "two") == 2


def test_killed_processes_are_resumed_and_nothing_is_made_twice(place):
    made = reference(place)
    command = (
        "exec erta sample run.yaml fabric.devices=2 fabric.strategy=ddp --prompts prompts.jsonl"
        " -o job --no-gifs"
    )
    process = start(command, place, TOY_SECONDS="0.5")
    end = time.monotonic() + LIMIT
    while len(Store(place / "job").committed(0)) < 2:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    kill(process)
    finished(process)
    done = Store(place / "job").committed(0)
    assert 2 <= len(done) < COUNT
    refused = erta("erta sample run.yaml --prompts prompts.jsonl -o job", status=2)
    assert "holds a job already; give --resume" in refused
    run(f"{command} --resume", place)
    assert hashes(place / "job") == made
    assert sum(begun(place).values()) <= COUNT + 2  # each of two processes was in the middle of one
    other = erta("erta sample run.yaml steps=5 --prompts prompts.jsonl -o job --resume", status=2)
    assert "sigmas: folder [1.0" in other
    assert hashes(place / "job") == made


SCRIPT = """
from erta_toy_jobs import ToyVideo
from erta_framework import Sampler

sampler = Sampler(num_steps=6, accelerator="cpu", devices=2, strategy="ddp")
for folder in ("python", "again"):  # a second job finds the processes of the first
    summary = sampler.sample_job(ToyVideo(), "prompts.jsonl", folder, seed=100)
    if summary.leader:
        print("made", summary.done, "failed", summary.failed)
"""


def test_the_same_from_python(place):
    made = reference(place)
    (place / "script.py").write_text(SCRIPT)
    said = run([sys.executable, "script.py"], place, TOY_SECONDS="0.2")
    assert said.count(f"made {COUNT} failed ()") == 2
    for folder in ("python", "again"):
        assert hashes(place / folder) == made
        assert workers(place / folder) == 2


def test_many_ranks_calibrate_like_one(place):
    page = commands()
    run(page["shared.safetensors"], place)
    assert max(begun(place).values()) == 1
    merged = Profile.load(place / "shared.safetensors")
    erta(page["shared.safetensors"].replace("fabric.devices=2", "").replace("shared", "alone"))
    single = Profile.load(place / "alone.safetensors")
    assert merged.samples == single.samples == 3
    assert merged.fingerprint == single.fingerprint
    assert merged.provenance == single.provenance
    for name, values in single.statistics.items():
        torch.testing.assert_close(merged.statistics[name], values, rtol=1e-6, atol=1e-6)
    # apart, and added up afterwards
    for name in ("one", "two", "both"):
        erta(page[f"{name}.safetensors"])
    both = Profile.load(place / "both.safetensors")
    assert (both.samples, both.fingerprint) == (2, single.fingerprint)
    erta(page["two.safetensors"].replace("seed=101", "steps=5").replace("two", "other"))
    refused = erta("erta profile merge one.safetensors other.safetensors -o never.safetensors", 1)
    assert "num_steps: first '6' / number 2 '5'" in refused
    assert not (place / "never.safetensors").exists()


def test_the_reference_model_makes_the_same_bytes_on_two_processes(place):
    (place / "run.yaml").write_text("model: shapes-wan\nsteps: 3\n")
    lines = ["a red circle moving left", "a blue square moving up", "a green circle moving right"]
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": x}) + "\n" for x in lines))
    command = "erta sample run.yaml fabric.accelerator=cpu --prompts prompts.jsonl --no-gifs"
    erta(f"{command} -o one")
    run(f"{command} fabric.devices=2 -o two", place)
    made = hashes(place / "one")
    assert len(made) == 3
    assert hashes(place / "two") == made


# ------------------------------------------------------------------------------------- docs
def commands() -> dict[str, str]:
    """The commands of the how-to page by the folder or file that they write."""
    text = (ROOT / "docs/how-to/many-gpus.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = {}
    for block in blocks:
        for line in block.strip().splitlines():
            found[re.findall(r"--output (\S+)|merge (\S+)", line)[-1]] = line
    return {first or second: line for (first, second), line in found.items()}


def test_the_page_has_these_commands():
    assert list(commands()) == [
        "runs/job", "runs/one-machine", "runs/fabric-run", "runs/torchrun", "runs/slurm",
        "runs/spot", "shared.safetensors", "one.safetensors", "two.safetensors",
        "both.safetensors",
    ]  # fmt: skip


def test_the_commands_of_one_machine_and_of_slurm_run(place, monkeypatch):
    erta(commands()["runs/job"])
    made = hashes(place / "runs/job")
    assert len(made) == COUNT
    assert len(list((place / "runs/job/pictures").glob("*.gif"))) == COUNT
    run(commands()["runs/one-machine"], place)
    assert hashes(place / "runs/one-machine") == made
    run(commands()["runs/fabric-run"].replace("fabric run", "fabric run --main-port=29433"), place)
    assert hashes(place / "runs/fabric-run") == made
    programs = place.parent / "programs"
    run(f"PATH={programs}:$PATH; {commands()['runs/slurm']}", place)
    assert hashes(place / "runs/slurm") == made


def test_the_commands_of_many_machines_run(place):
    command = commands()["runs/torchrun"]
    nodes = [start(command, place, NODE_RANK=str(k), MAIN="127.0.0.1") for k in (0, 1)]
    ended = [finished(node) for node in nodes]
    assert [code for code, _ in ended] == [0, 0], ended
    assert len(hashes(place / "runs/torchrun")) == COUNT
    assert max(begun(place).values()) == 1


def test_the_commands_of_machines_that_come_and_go_run(place):
    command = commands()["runs/spot"]
    first = start(command, place, TOY_SECONDS="0.3")
    second = start(command, place, TOY_SECONDS="0.3")
    assert [finished(each)[0] for each in (first, second)] == [0, 0]
    assert len(hashes(place / "runs/spot")) == COUNT
    assert max(begun(place).values()) == 1
