"""Schedules, decoders, rows: the parts of the masked loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework.errors import InputError
from erta_framework.masked import Decoder, MaskedSchedule, Rows, pad_prompts, select_rows


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_every_schedule_ends_with_nothing_masked_and_spreads_tokens_evenly(length, block, steps):
    blocks = -(-length // block)
    masked = torch.ones(2, length, dtype=torch.bool)
    masked[1, ::2] = False
    plan = MaskedSchedule(steps=steps * blocks, block=block).plan(masked)
    assert plan.left[..., -1].eq(0).all()
    before = torch.cat([plan.counts[..., None], plan.left], -1)
    decoded = -before.diff(dim=-1)
    assert (decoded >= 0).all()
    assert (decoded.amax(-1) - decoded.amin(-1) <= 1).all()
    assert torch.equal(plan.counts.sum(1), masked.sum(1))
    assert (decoded.diff(dim=-1) <= 0).all()  # the remainder goes to the first steps


def test_steps_that_do_not_divide_among_blocks_are_refused():
    with pytest.raises(InputError, match="give a multiple of 4"):
        MaskedSchedule(steps=6, block=4).plan(torch.ones(1, 16, dtype=torch.bool))


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**16))
@settings(deadline=None, max_examples=80)
def test_rows_hold_what_is_wanted_once_in_order_and_pad_with_what_is_not(batch, length, seed):
    wanted = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.5
    rows = select_rows(wanted)
    if rows is None:
        assert wanted.all()
        return
    assert torch.equal(rows.as_mask(length), wanted)
    assert (rows.index.diff(dim=1) > 0).all()  # ascending, so each position once
    assert rows.index.shape[1] == max(1, int(wanted.sum(1).max()))


def test_scatter_leaves_the_places_that_only_fill_up():
    wanted = torch.tensor([[True, True, False], [False, True, False]])
    rows = select_rows(wanted)
    target = torch.zeros(2, 3, 1)
    rows.scatter(target, torch.ones(2, rows.index.shape[1], 1))
    assert torch.equal(target[..., 0].bool(), wanted)


def test_gather_and_scatter_are_inverse_on_rows():
    x = torch.randn(2, 5, 3)
    rows = Rows(torch.tensor([[0, 2], [1, 4]]))
    out = rows.scatter(torch.zeros_like(x), rows.gather(x))
    assert torch.equal(out[0, 2], x[0, 2])
    assert torch.equal(out[1, 1], x[1, 1])
    assert out[0, 1].eq(0).all()


def draw_histogram(temperature: float) -> torch.Tensor:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(1, 4000, 3)
    tokens, _ = Decoder(temperature=temperature).draw(logits, [torch.Generator().manual_seed(0)])
    return torch.bincount(tokens[0], minlength=3) / 4000


def test_temperature_one_draws_from_the_softmax_and_zero_takes_the_largest():
    expected = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert (draw_histogram(1.0) - expected).abs().max() < 0.03
    assert draw_histogram(0.0)[2] == 1


def test_the_probability_is_that_of_the_token_without_noise():
    logits = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(1))
    tokens, probability = Decoder(temperature=2.0).draw(logits, [torch.Generator().manual_seed(2)])
    expected = logits.double().softmax(-1).gather(-1, tokens[..., None])[..., 0].float()
    assert torch.equal(probability, expected)


def test_a_threshold_decodes_all_that_reach_it_and_at_least_the_count():
    candidates = torch.tensor([[True, True, True, False]])
    probability = torch.tensor([[0.95, 0.2, 0.93, 0.99]])
    order = torch.arange(4.0)[None]
    some = Decoder(threshold=0.9).choose(candidates, torch.tensor([1]), probability, order)
    assert some.tolist() == [[True, False, True, False]]
    low = Decoder(threshold=0.99).choose(candidates, torch.tensor([1]), probability, order)
    assert low.tolist() == [[True, False, False, False]]


def test_known_orders_ignore_probability():
    candidates = torch.ones(1, 3, dtype=torch.bool)
    probability, priority = torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([[-0.0, -1.0, -2.0]])
    for order, expected in (("confidence", 0), ("left_to_right", 0), ("random", 0)):
        chosen = Decoder(order=order).choose(candidates, torch.tensor([1]), probability, priority)
        assert chosen[0].nonzero().item() == expected
    late = priority.flip(1)
    chosen = Decoder(order="random").choose(candidates, torch.tensor([1]), probability, late)
    assert chosen[0].nonzero().item() == 2


@pytest.mark.parametrize(
    "settings",
    [{"order": "best"}, {"temperature": -1.0}, {"threshold": 0.0}, {"remask": -1}],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Decoder(**settings)


def test_prompts_are_padded_on_the_left():
    ids, seen, start = pad_prompts([[5], [6, 7]], answer=2, mask_id=9)
    assert ids.tolist() == [[0, 5, 9, 9], [6, 7, 9, 9]]
    assert seen.tolist() == [[False, True, True, True], [True] * 4]
    assert start == 2
