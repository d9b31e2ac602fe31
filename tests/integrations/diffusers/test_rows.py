"""Per-sample decisions through pipelines: the network runs on the samples that need it only."""

from __future__ import annotations

import re

import pytest
import torch

from erta_framework import Policy, Reuse, hookimpl
from erta_framework.session import WHOLE
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.batching import splitter
from erta_integrations.diffusers.tiny import FAMILIES

STEPS = 6
SCHEDULES = ((0, 2, 5), (0, 1, 2, 3, 5), (0, 2, 5))


class Listed(Policy):
    """Sample k of the prompts computes at the steps listed for it, in every copy of it."""

    per_sample = True
    steps: tuple[tuple[int, ...], ...] = ()

    @hookimpl
    def decide(self, step, call):
        copies = call.x.shape[0] // len(self.steps)
        mask = [step.index not in own for own in self.steps]
        return Reuse("listed", mask=mask * copies)


def batches(pipe, family):
    """Batch size of every network call, seen from inside the network."""
    sizes: list[int] = []
    component, _, inner = family.inner[0].partition(".")
    module = getattr(pipe, component).get_submodule(inner)
    module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def sampled(name, schedules, batch=3, **options):
    family = FAMILIES[name]
    pipe = family.build()
    sizes = batches(pipe, family)
    with attach(pipe, [Listed(steps=schedules)], **options) as run:
        latents = family.run(pipe, STEPS, batch=batch)
    return latents, run.traces[0], sizes


def plain(name, policies, batch=3):
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, policies) as run:
        latents = family.run(pipe, STEPS, batch=batch)
    return latents, run.traces[0]


SPLIT = [
    "wan-euler",
    "flux",
    "sd3",
    "pixart-sigma",
    "cogvideox",
    "sdxl",
    "qwen-image",
    "z-image",
    "cogview4",
    "sd",
    "ltx",
    "sana",
]


@pytest.mark.parametrize("name", SPLIT)
def test_each_sample_gets_its_own_schedule(name):
    latents, trace, sizes = sampled(name, SCHEDULES)
    branches = len({call.branch for call in trace.calls()})
    reasons = {call.reason for call in trace.calls()}
    assert reasons <= {"cold", "listed"}
    copies = sizes[0] // 3
    counts = {0: 3, 1: 1, 2: 3, 3: 1, 5: 3}
    assert sizes == [copies * counts[i] for i in (0, 1, 2, 3, 5) for _ in range(branches)]
    assert trace.network_samples == sum(sizes)
    # every sample is what it is when the whole batch follows its schedule
    for sample, own in enumerate(SCHEDULES):
        alike, other = plain(name, [Listed(steps=(own,) * 3)])
        assert all(call.rows is None for call in other.calls())
        per = latents.shape[0] // 3
        part = slice(sample * per, (sample + 1) * per)
        torch.testing.assert_close(latents[part], alike[part], rtol=1e-4, atol=1e-5)
        assert trace.calls_for(sample) == other.calls_for(sample)


def test_samples_that_agree_are_bit_identical_to_a_plain_decision():
    same, trace, _ = sampled("wan-euler", ((0, 2, 5),) * 3)
    other, _ = plain("wan-euler", [Listed(steps=((0, 2, 5),) * 3)])
    assert torch.equal(same, other)
    assert trace.reused_calls == 6


def test_the_block_stack_computes_the_batch_where_one_sample_must():
    _, trace, _ = sampled("wan-euler", SCHEDULES, seam="trunk")
    reasons = [call.reason for call in trace.calls() if call.index == 1]
    assert reasons == [f"listed for part of the batch: {WHOLE}"] * 2
    assert [call.computed for call in trace.calls()][2:4] == [True, True]
    assert trace.network_samples == 3 * trace.network_calls


X = torch.zeros(3, 4, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ids": torch.zeros(3, 2)}, "ids \\(3, 2\\) may hold positions or samples"),
        ({"image_rotary_emb": (torch.zeros(5, 2),) * 3}, "may be one a sample"),
        ({"text": torch.zeros(6, 2)}, "text \\(6, 2\\) does not begin with the batch of 3"),
        ({"text": torch.zeros(7, 3)}, "does not begin with the batch"),
        ({"sizes": [1, 2, 3]}, "3 numbers may be one a sample"),
        ({"kv": object()}, "kv is object"),
    ],
)
def test_what_cannot_be_told_is_not_guessed(arguments, words):
    answer = splitter({"hidden_states": X, **arguments}, 3)
    assert isinstance(answer, str)
    assert re.search(words, answer)


def test_arguments_are_taken_by_row_or_shared():
    residuals = tuple(torch.arange(3.0)[:, None] + k for k in range(4))
    arguments = {
        "hidden_states": torch.arange(3.0)[:, None],
        "timestep": torch.tensor(7.0),
        "guidance": torch.tensor([1.0]),
        "img_ids": torch.zeros(9, 2),
        "image_rotary_emb": (torch.zeros(9, 2), torch.zeros(9, 2)),
        "down_block_additional_residuals": residuals,
        "cap_feats": [torch.zeros(5), torch.ones(5), torch.full((5,), 2.0)],
        "added": {"text_embeds": torch.arange(3.0), "scale": 1.0},
        "joint_attention_kwargs": None,
        "return_dict": False,
    }
    take = splitter(arguments, 3)
    assert callable(take)
    some = take(torch.tensor([2, 0]))
    assert some["hidden_states"][:, 0].tolist() == [2.0, 0.0]
    assert some["timestep"] is arguments["timestep"]
    assert some["guidance"] is arguments["guidance"]
    assert some["img_ids"] is arguments["img_ids"]
    assert some["image_rotary_emb"] is arguments["image_rotary_emb"]
    assert [r[:, 0].tolist() for r in some["down_block_additional_residuals"]] == [
        [2.0 + k, float(k)] for k in range(4)
    ]
    assert [t[0].item() for t in some["cap_feats"]] == [2.0, 0.0]
    assert some["added"]["text_embeds"].tolist() == [2.0, 0.0]
    assert some["return_dict"] is False
