"""The scripts and commands of the page on shared samples run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[4] / "docs/how-to/shared-sample.md"
TEXT = PAGE.read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r'^```py title="(\w+\.py)"\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ON_A_CPU = """
import warnings

import torch

torch.accelerator.device_count = lambda: 1  # diffusers asks, and a CPU has none
warnings.filterwarnings("ignore", "`torch.distributed._functional_collectives", FutureWarning)
"""


def test_each_script_has_its_command() -> None:
    assert set(SCRIPTS) == {"fsdp.py", "context.py", "guidance.py", "tensor.py"}
    assert [command.split()[-1] for command in COMMANDS] == list(SCRIPTS)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="the models need diffusers")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_page_runs_in_two_processes(name: str, tmp_path: Path) -> None:
    prefix = ON_A_CPU if name == "context.py" else ""
    (tmp_path / name).write_text(prefix + SCRIPTS[name], encoding="utf-8")
    program, *arguments = shlex.split(next(c for c in COMMANDS if c.split()[-1] == name))
    assert program == "torchrun"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    said = re.findall(r"computed (\(.*?\))", done.stdout)
    assert len(said) == 2
    assert said[0] == said[1]
    computed = said[0].strip("()").split(", ")
    assert 3 < len(computed) < 12
