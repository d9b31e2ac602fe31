"""A Ray of two workers on this machine: the pages' commands and code, with one worker killed."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from erta_framework import Profile
from erta_framework.cli import app

pytestmark = [
    pytest.mark.slow,
    # of ray.data's own settings, and of the processes and files that Ray leaves to its daemons
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PAGE = (Path(__file__).parents[3] / "docs/how-to/ray.md").read_text(encoding="utf-8")
MODEL = '''
import os
import signal

import torch


class ToyVideo:
    """A smooth velocity; logs its prompts, and kills its first process at one of them."""

    latent_shape = (3, 2, 6, 6)

    def fingerprint(self):
        return {"network": "ToyVideo"}

    def encode(self, prompts):
        folder = os.environ["TOY_LOG"]
        with open(os.path.join(folder, f"{os.getpid()}.log"), "a") as log:
            log.write(prompts[0] + "\\n")
        if prompts[0] == "a fatal prompt":
            try:
                os.close(os.open(os.path.join(folder, "fatal"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor([[len(prompt) / 20.0] for prompt in prompts])

    def __call__(self, x, timestep, embeds):
        time = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        return x - 0.3 * torch.tanh(x) * time + embeds.reshape(-1, 1, 1, 1, 1) * (1 - time)
'''
PROMPTS = [*(f"prompt {k}" for k in range(3)), "a fatal prompt", "the last one"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a toy model, a configuration and prompts, as workers see them too."""
    site, work, log = (tmp_path / name for name in ("site", "work", "log"))
    info = site / "erta_toy-1.2.3.dist-info"
    for folder in (info, work, log):
        folder.mkdir(parents=True)
    (site / "erta_toy_ray.py").write_text(MODEL)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-toy\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(
        "[erta_framework.models]\ntoy-video = erta_toy_ray:ToyVideo\n"
    )
    (work / "run.yaml").write_text("model: toy-video\nsteps: 4\nseed: 100\n")
    (work / "prompts.jsonl").write_text("".join(f'{{"prompt": "{p}"}}\n' for p in PROMPTS))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("TOY_LOG", str(log))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # 15 by default, which starves beside other tests
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(work)
    yield work
    sys.modules.pop("erta_toy_ray", None)


@pytest.fixture
def cluster(place: Path) -> Iterator[None]:
    """A Ray with room for two workers."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def erta(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("samples/*/*.safetensors")}


def command(output: str) -> list[str]:
    """A command of the page, by the folder or file it writes to."""
    (line,) = re.findall(rf"^erta (.* --output {output})$", PAGE, re.MULTILINE)
    return shlex.split(line)


def test_a_cluster_of_two_of_which_one_is_killed(place: Path, cluster: None) -> None:
    """One test, so that one cluster serves all of it."""
    check_job(place)
    check_calibration(place)
    check_data_set()


def check_job(place: Path) -> None:
    """The bytes of one process, nothing lost, nothing made twice."""
    erta(*command("runs/ray"), "--no-gifs")
    logs = {path.stem: path.read_text().split("\n")[:-1] for path in place.parent.glob("log/*.log")}
    begun = Counter(prompt for lines in logs.values() for prompt in lines)
    assert begun == {**dict.fromkeys(PROMPTS, 1), "a fatal prompt": 2}
    assert str(os.getpid()) not in logs
    assert len(logs) in (2, 3)
    made = files(place / "runs/ray")
    assert len(made) == len(PROMPTS)
    manifest = (place / "runs/ray/manifest.jsonl").read_text()
    assert manifest.count('"done"') == len(PROMPTS)
    erta("sample", "run.yaml", "--prompts", "prompts.jsonl", "--output", "runs/one", "--no-gifs")
    assert files(place / "runs/one") == made


def check_calibration(place: Path) -> None:
    """The profile of one process."""
    words = command("shared.safetensors")
    erta(*words)
    own = [word for word in words[:-1] if word not in ("launcher=ray", "fabric.devices=2")]
    erta(*own, "one.safetensors")
    made, expected = (Profile.load(place / f"{name}.safetensors") for name in ("shared", "one"))
    assert made.samples == expected.samples
    for name, values in expected.statistics.items():
        torch.testing.assert_close(made.statistics[name], values)


def check_data_set() -> None:
    """The code of the page, whose arrays are those of the job."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # as in a script: what it defines is sent to the workers
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in re.findall(r"^```(?:py|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        code = code.replace("size=2", "size=1")  # each imports diffusers, which takes its time
        exec(compile(code, "docs/how-to/ray.md", "exec"), names)  # noqa: S102 - our own page
    rows = {row["prompt"]: row for row in names["rows"]}
    assert set(rows) == {"a red circle moving left", "a blue square moving up"}
    alone = names["made"]["sample"][0]
    assert np.array_equal(rows["a red circle moving left"]["sample"], alone)
    assert {row["network_calls"] for row in rows.values()} == set(names["made"]["network_calls"])
