"""Constant branches of pipelines: what depends on the text or a control alone is computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import attach
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan import load as load_wan
from erta_policies.constant_branches import ConstantBranches
from erta_policies.ertacache import SkipPolicy
from erta_policies.taylorseer import FORA
from tiny_pipelines import FAMILIES

STEPS = 5
KEYS = r".*[.]attn2[.]to_[kv]"
CASES = {
    # modules, and how many of them
    "wan-euler": (rf"condition_embedder[.]text_embedder|{KEYS}", 5),
    "wan-vace": (r"condition_embedder[.]text_embedder|vace_patch_embedding", 2),
    "flux": (r"context_embedder|time_text_embed[.]text_embedder", 2),
    "sd3": (r"context_embedder", 1),
    "pixart-sigma": (rf"caption_projection|{KEYS}", 5),
    "sd": (KEYS, 8),
    "sdxl": (KEYS, 8),
}


def sample(name: str, policies: Any, steps: int = STEPS) -> tuple[Tensor, Any]:
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, steps)
    return latents, attached.traces[0]


@pytest.mark.parametrize("name", CASES)
def test_they_run_once_for_each_branch_and_no_bit_changes(name: str) -> None:
    family, (pattern, number) = FAMILIES[name], CASES[name]
    latents, trace = sample(name, [ConstantBranches(modules=pattern)])
    assert torch.equal(latents, family.run(family.build(), STEPS))
    calls = trace.network_calls // STEPS
    counts = [call.sites["named"] for call in trace.calls()]
    assert counts == [(number, 0, 0)] * calls + [(0, number, 0)] * (calls * (STEPS - 1))
    assert trace.work < trace.network_samples


def test_beside_other_methods_they_change_no_bit() -> None:
    constant = ConstantBranches(modules=CASES["wan-euler"][0])
    others = [SkipPolicy(steps=(0, 1, 3)), FORA(interval=2, level="modules")]
    latents, _ = sample("wan-euler", others)
    both, trace = sample("wan-euler", [*others, constant])
    assert torch.equal(both, latents)
    assert trace.calls()


def test_every_request_has_its_own() -> None:
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    other = {"prompt_embeds": torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(5))}
    with attach(pipe, [ConstantBranches(modules=CASES["wan-euler"][0])]):
        first, second = family.run(pipe, STEPS), family.run(pipe, STEPS, **other)
    assert torch.equal(first, family.run(family.build(), STEPS))
    assert torch.equal(second, family.run(family.build(), STEPS, **other))


def test_a_trained_model() -> None:
    model = load_wan()
    pipe = pipeline(model)
    prompt = list(model.demo_prompts()[1])[:2]

    def answer() -> Tensor:
        return samples_of(model, pipe(**request(model, prompt, seeds=[3, 4], num_steps=4)))

    expected = answer()
    with attach(pipe, [ConstantBranches(modules=CASES["wan-euler"][0])]) as run:
        assert torch.equal(answer(), expected)
    assert run.traces[0].steps[-1].calls[0].sites["named"][0] == 0
