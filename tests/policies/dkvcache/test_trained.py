"""The claim of the paper on a network that was trained to the end: permutations of 12 symbols."""

from __future__ import annotations

import json

import pytest

from erta_framework.masked import Decoder, MaskedSampler, MaskedSchedule
from erta_integrations.words import (
    find_weights,
    load_permutations_model,
    load_words_model,
    read_training,
)
from erta_policies.dkvcache import DKVCacheDecode

SAMPLES = 200


def measure(policies, order="random", steps=None) -> tuple[float, int]:
    model = load_permutations_model()
    sampler = MaskedSampler(
        policies,
        schedule=MaskedSchedule(steps=steps),
        decoder=Decoder(order=order, temperature=1.0),
        accelerator="cpu",
        batch_size=SAMPLES,
    )
    return model.task.judge(sampler.sample(model, model.make_ids(SAMPLES), start=1).ids)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_immediate_caching_collapses_and_delayed_caching_keeps(order):
    plain, _ = measure([], order)
    delayed, distinct = measure([DKVCacheDecode(delay=1, refresh=4, restart="request")], order)
    at_once, _ = measure([DKVCacheDecode(delay=0, refresh=4, restart="request")], order)
    assert plain > 0.98
    assert delayed > 0.95 * plain
    assert at_once < 0.25 * plain
    assert distinct > 0.9 * SAMPLES  # not one permutation again and again


def test_half_the_steps_are_no_substitute():
    assert measure([], steps=6)[0] < 0.5


@pytest.mark.parametrize(("name", "above"), [("permutations", 0.01), ("words", 0.04)])
def test_the_networks_were_trained_nearly_to_the_optimum(name, above):
    facts = json.loads(read_training(find_weights(name))["training"])
    model = load_words_model() if name == "words" else load_permutations_model()
    assert facts["loss"] == pytest.approx(model.task.optimum, abs=above)


def test_two_steps_of_delay_without_refresh_beat_one_with_it_at_fewer_rows_left_to_right():
    """[ours] On words; the paper has one step."""
    model = load_words_model()

    def run(policy):
        sampler = MaskedSampler(
            [policy],
            decoder=Decoder(order="left_to_right", temperature=1.0),
            accelerator="cpu",
            batch_size=SAMPLES,
        )
        samples = sampler.sample(model, model.make_ids(SAMPLES))
        return model.task.judge(samples.ids)[0], samples.rows_computed

    two, fewer = run(DKVCacheDecode(delay=2, refresh=None, restart="request"))
    one, rows = run(DKVCacheDecode(delay=1, refresh=4, restart="request"))
    at_once, _ = run(DKVCacheDecode(delay=0, refresh=4, restart="request"))
    assert fewer < rows
    assert two > one
    assert at_once < 0.25 * two
