"""A fake installed distribution with a toy video model and a policy that cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from erta_framework.cli import app

MODEL = '''
import torch

from erta_framework import Policy, hookimpl, Reuse


class ToyVideo:
    """Predicts a velocity that depends smoothly on latents, time and prompt."""

    latent_shape = (3, 4, 12, 12)

    def fingerprint(self):
        return {"network": "ToyVideo"}

    def encode(self, prompts):
        return torch.tensor([[len(prompt) / 20.0] for prompt in prompts])

    def __call__(self, x, timestep, embeds):
        time = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        return x - 0.3 * torch.tanh(x) * time + embeds.reshape(-1, 1, 1, 1, 1) * (1 - time)

    def demo_prompts(self):
        return ["calibrate one", "calibrate two"], ["show one", "show number two", "three"]


class Sometimes(Policy):
    """Decides while sampling."""

    @hookimpl
    def decide(self, step):
        return Reuse("odd") if step.index % 2 else None


def not_a_model():
    return object()
'''
ENTRY_POINTS = """
[erta_framework.models]
toy-video = erta_toy_video:ToyVideo
not-a-model = erta_toy_video:not_a_model
[erta_framework.policies]
sometimes = erta_toy_video:Sometimes
broken = erta_toy_video:Missing
"""


@pytest.fixture(autouse=True)
def toy_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    info = site / "erta_toy-1.2.3.dist-info"
    info.mkdir(parents=True)
    (site / "erta_toy_video.py").write_text(MODEL)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-toy\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("ERTA_PLUGINS", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before
    sys.modules.pop("erta_toy_video", None)


Erta = Callable[..., Result]


@pytest.fixture
def erta() -> Erta:
    """Run `erta ARGUMENTS...`; `model=toy-video` has to be said where a model is loaded."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


@pytest.fixture
def profile(erta: Erta) -> str:
    """A profile of the toy model over 8 steps."""
    done = erta("calibrate", "model=toy-video", "steps=8", "--policy", "ertacache", "-o", "toy.st")
    assert done.exit_code == 0, done.output
    return "toy.st"
