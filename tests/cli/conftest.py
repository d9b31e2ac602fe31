"""A fake installed distribution with a toy video model and a policy that cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from erta_framework.cli import app

MODEL = '''
import torch

from erta_framework import Policy, hookimpl, Reuse
from erta_framework.testing import GaussianMixtureFlow


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


class ToyFlow(GaussianMixtureFlow):
    """A toy with everything that a profiler may ask of a model."""

    def signals(self):
        def embedded(x, timestep, embeds):
            return torch.stack([torch.sin(timestep / 300), torch.cos(timestep / 300)], dim=1)

        return {"timestep_embedding": embedded, "timestep_projection": embedded}

    def demo_prompts(self):
        return ["calibrate one", "calibrate two"], ["show one"]


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
mixture = erta_toy_video:ToyFlow
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


def made_text_parts() -> tuple[Any, Any]:
    """A tokenizer that spells words out, and a text encoder of random weights."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {token: number for number, token in enumerate(tokens)}
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24)
    return tokenizer, CLIPTextModel(config)


@pytest.fixture(scope="session")
def text_parts() -> Callable[[], tuple[Any, Any]]:
    """Makes a tokenizer and a text encoder, for pipelines that are saved."""
    return made_text_parts
