"""The claim of the paper on a network that was trained to the end: permutations of 12 symbols."""

from __future__ import annotations

import pytest

from erta_framework.masked import Decoder, MaskedSampler, MaskedSchedule
from erta_integrations.words import find_weights, load_permutations_model, read_training
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


def test_the_network_was_trained_to_the_end():
    import json

    facts = json.loads(read_training(find_weights("permutations"))["training"])
    assert facts["loss"] == pytest.approx(load_permutations_model().task.optimum, abs=0.01)
