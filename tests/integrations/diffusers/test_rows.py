"""Per-sample decisions through pipelines: the network runs on the samples that need it only."""

from __future__ import annotations

import re

import pytest
import torch

from erta_framework import Policy, Reuse, Traits, hookimpl
from erta_framework.session import UNDIVIDED as WHOLE
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.network import (
    as_tensor,
    bind_arguments,
    find_latents,
    find_row_selector,
    read_output,
    to_call,
    unwrap_class,
)
from erta_policies.adapters import EveryBranchAgrees
from erta_policies.easycache import EasyCache
from tiny_pipelines import FAMILIES, drawn, flow

STEPS = 6
SCHEDULES = ((0, 2, 5), (0, 1, 2, 3, 5), (0, 2, 5), (0, 2, 3, 5))


class Listed(Policy):
    """Sample k of the prompts computes at the steps listed for it, in every copy of it."""

    traits = Traits(decides="sample")
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


# where a list or a table could be mistaken for samples at another batch size
BATCHES = [("qwen-image", 2), ("qwen-image", 4), ("wan-euler", 2), ("wan-euler", 4)]


@pytest.mark.parametrize(("name", "batch"), [*((name, 3) for name in SPLIT), *BATCHES])
def test_each_sample_gets_its_own_schedule(name, batch):
    schedules = SCHEDULES[:batch]
    latents, trace, sizes = sampled(name, schedules, batch)
    branches = len({call.branch for call in trace.calls()})
    reasons = {call.reason for call in trace.calls()}
    assert reasons <= {"cold", "listed"}
    copies = sizes[0] // batch
    counts = [sum(i in own for own in schedules) for i in (0, 1, 2, 3, 5)]
    assert counts[1] == 1
    assert sizes == [copies * count for count in counts for _ in range(branches)]
    assert trace.network_samples == sum(sizes)
    # every sample is what it is when the whole batch follows its schedule
    for sample, own in enumerate(schedules):
        alike, other = plain(name, [Listed(steps=(own,) * batch)], batch)
        assert all(call.rows is None for call in other.calls())
        per = latents.shape[0] // batch
        part = slice(sample * per, (sample + 1) * per)
        torch.testing.assert_close(latents[part], alike[part], rtol=1e-4, atol=1e-5)
        assert trace.calls_for(sample) == other.calls_for(sample)


def test_samples_that_agree_are_bit_identical_to_a_plain_decision():
    same, trace, _ = sampled("wan-euler", ((0, 2, 5),) * 3)
    other, _ = plain("wan-euler", [Listed(steps=((0, 2, 5),) * 3)])
    assert torch.equal(same, other)
    assert trace.reused_calls == 6


def test_what_each_sample_got_is_shown(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from erta_framework import report as media

    name, shown, real = "write_schedule_plot", [], media.write_schedule_plot
    monkeypatch.setattr(media, name, lambda p, path: shown.append(p) or real(p, path))
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with attach(pipe, [Listed(steps=SCHEDULES[:3])]) as run:
        family.run(pipe, STEPS, batch=3)
    assert "  samples differed: 6, 10, 6 calls each" in run.summary().splitlines()
    run.plot(tmp_path / "differ.png")
    assert shown[0].samples == [[step in own for step in range(STEPS)] for own in SCHEDULES[:3]]
    with attach(pipe, [Listed(steps=((0, 2, 5),) * 3)]) as run:
        family.run(pipe, STEPS, batch=3)
    assert "samples differed" not in run.summary()
    run.plot(tmp_path / "alike.png")
    assert shown[1].samples == []


def test_the_block_stack_computes_the_batch_where_one_sample_must():
    _, trace, _ = sampled("wan-euler", SCHEDULES[:3], seam="trunk")
    reasons = [call.reason for call in trace.calls() if call.index == 1]
    assert reasons == [f"listed for part of the batch: {WHOLE}"] * 2
    assert [call.computed for call in trace.calls()][2:4] == [True, True]
    assert trace.network_samples == 3 * trace.network_calls


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ltx2", "LTX2VideoTransformer3DModel: it returns more than one output"),
        (
            "hidream",
            "HiDreamImageTransformer2DModel: its argument encoder_hidden_states_llama3 "
            "(2, 4, 8, 16) does not begin with the batch of 4",
        ),
    ],
)
def test_a_network_that_cannot_be_split_computes_the_batch_where_one_sample_must(name, why):
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, [Listed(steps=((0,), (0, 2)))]) as run:
        family.run(pipe, 4, batch=2)
    (trace,) = run.traces
    assert [call.reason for call in trace.calls()] == [
        "cold",
        "listed",
        f"listed for part of the batch: {why}",
        "listed",
    ]
    assert [call.computed for call in trace.calls()] == [True, False, True, False]
    assert all(call.rows is None for call in trace.calls())
    assert trace.network_samples == 2 * 4  # the branches are one batch


def with_skip_layers(policy, batch, steps=8):
    """SD3 with skip-layer guidance: a second call a step, on the conditional half only."""
    family = FAMILIES["sd3"]
    pipe = family.build()
    sizes = batches(pipe, family)
    with attach(pipe, [policy]) as run:
        latents = family.run(
            pipe,
            steps,
            batch=batch,
            skip_guidance_layers=[1],
            skip_layer_guidance_start=0.2,
            skip_layer_guidance_stop=0.8,
        )
    assert latents.isfinite().all()
    return run.traces[0], sizes


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("agreed", [False, True])
def test_a_decision_for_samples_meets_a_branch_of_another_batch(agreed, batch):
    rule = EasyCache(threshold=0.6, warmup=2)
    trace, sizes = with_skip_layers(EveryBranchAgrees(policy=rule) if agreed else rule, batch)
    computed = [(call.index, call.branch) for call in trace.calls() if call.computed]
    assert computed == [(0, "call0"), (1, "call0"), (2, "call1"), (7, "call0")]
    assert sizes == [2 * batch, 2 * batch, batch, 2 * batch]
    reused = [(call.index, call.branch) for call in trace.calls() if not call.computed]
    both = [(index, branch) for index in (3, 4, 5, 6) for branch in ("call0", "call1")]
    assert reused == [(2, "call0"), *both]


def test_a_branch_of_another_batch_computes_all_where_one_sample_must():
    trace, sizes = with_skip_layers(Listed(steps=((0,), (0, 4))), 2)
    assert [(c.index, c.branch, c.rows) for c in trace.calls() if c.computed] == [
        (0, "call0", None), (2, "call1", None), (4, "call0", (1, 3)), (4, "call1", None),
    ]  # fmt: skip
    assert sizes == [4, 2, 2, 2]


ORACLE = [*SPLIT[:8], "hidream"]


@pytest.mark.parametrize("name", ORACLE)
def test_rows_of_the_output_come_from_rows_of_the_arguments(name):
    family = FAMILIES[name]
    pipe = family.build()
    given = []
    network = getattr(pipe, family.inner[0].partition(".")[0])
    handle = network.register_forward_hook(
        lambda _, args, kwargs, raw: given.append((args, kwargs, raw)), with_kwargs=True
    )
    family.run(pipe, 1, batch=1 if name == "hidream" else 3)
    handle.remove()
    for args, kwargs, raw in given:
        arguments = bind_arguments(unwrap_class(network).forward, args, kwargs)
        latents = as_tensor(find_latents(arguments), name)
        take = find_row_selector(arguments, latents.shape[0])
        if name == "hidream":
            assert take == (
                "its argument encoder_hidden_states_llama3 (2, 2, 8, 16) "
                "has the batch of 2 on two axes"
            )
            continue
        assert callable(take)
        whole, form = read_output(raw, latents, name)
        for rows in (torch.tensor([latents.shape[0] - 1, 0]), torch.tensor([1])):
            some_args, some_kwargs = to_call(network, take(rows), len(args))
            assert (len(some_args), some_kwargs.keys()) == (len(args), kwargs.keys())
            with torch.no_grad():
                again = network.forward(*some_args, **some_kwargs)
            part, its = read_output(again, latents.index_select(0, rows), name)
            torch.testing.assert_close(part, whole[rows], rtol=1e-5, atol=1e-5)
            if form.rest is not None:
                torch.testing.assert_close(its.rest, form.rest[rows], rtol=1e-5, atol=1e-5)
    assert given


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
        ({"freqs": torch.zeros(3, 9, 4)}, "freqs \\(3, 9, 4\\) may hold positions or samples"),
        ({"text": torch.zeros(3, 3, 5, 2)}, "text \\(3, 3, 5, 2\\) has the batch of 3 on two axes"),
    ],
)
def test_what_cannot_be_told_is_not_guessed(arguments, words):
    answer = find_row_selector({"hidden_states": X, **arguments}, 3)
    assert isinstance(answer, str)
    assert re.search(words, answer)


class Stacked(torch.nn.Module):
    """Two arguments whose first axis only looks like the batch, at a batch of two."""

    def forward(self, hidden_states, timestep, freqs=None, text=None):
        if freqs is not None:  # cosines and sines, [2, N, D]
            return (hidden_states * freqs[0] + hidden_states.flip(-1) * freqs[1],)
        return (hidden_states + text[0] * text[1],)  # layers first, [2, B, N, D]


class Foreign:
    """A pipeline with nothing of diffusers' but a scheduler."""

    def __init__(self, **arguments):
        self.transformer, self.arguments = Stacked(), arguments
        self.scheduler = flow()

    def __call__(self, steps):
        self.scheduler.set_timesteps(steps)
        latents = drawn(2, 5, 4)
        for time in self.scheduler.timesteps:
            prediction = self.transformer(latents, time, **self.arguments)[0]
            latents = self.scheduler.step(prediction, time, latents).prev_sample
        return latents


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"freqs": drawn(2, 5, 4)}, "freqs (2, 5, 4) may hold positions or samples"),
        ({"text": drawn(2, 2, 5, 4)}, "text (2, 2, 5, 4) has the batch of 2 on two axes"),
    ],
)
def test_a_foreign_network_is_not_given_rows_of_what_is_no_batch(arguments, why):
    pipe = Foreign(**arguments)
    with attach(pipe, [Listed(steps=((0, 1, 2), (0, 2)))]) as run:
        latents = pipe(3)
    reasons = [call.reason for call in run.traces[0].calls()]
    reason = f"listed for part of the batch: Stacked: its argument {why}"
    assert reasons == ["cold", reason, "listed"]
    assert torch.equal(latents, pipe(3))


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
    take = find_row_selector(arguments, 3)
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
