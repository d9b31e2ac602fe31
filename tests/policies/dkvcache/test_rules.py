"""Which positions each published rule runs on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework.errors import PolicyError
from erta_policies.d2cache import D2Cache
from erta_policies.d2cache._policy import fill_gaps, find_density, take_highest, take_nucleus
from erta_policies.dkvcache import DKVCacheDecode, DKVCacheGreedy, DKVCachePD, DKVCachePrefill
from erta_policies.dkvcache._greedy import find_window
from erta_policies.dllmcache import DLLMCache
from erta_policies.fastdllm import FastDLLMDual, FastDLLMPrefix

MASK = 12
"""The mask of sequences of twelve."""


def known_at(calls, step):
    """Positions that are known before a step, A of the step before it."""
    return calls[step][0] != MASK


@pytest.mark.parametrize("delay", [0, 1, 2, 3])
@pytest.mark.parametrize("refresh", [3, None])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_decode_runs_on_all_but_what_was_known_by_then(watch, delay, refresh, order):
    """C_i = I \\ A_{i-1-delay} (arXiv 2505.15781), full at i < 2 and at i mod r = 0."""
    policy = DKVCacheDecode(delay=delay, refresh=refresh, restart="request")
    calls = watch(policy, order)
    for step, (_, ran) in enumerate(calls):
        if step < 2 or (refresh and step % refresh == 0):
            assert ran.all()
            continue
        # A_{i-1-delay} are the positions known before step i - delay
        assert torch.equal(ran, ~known_at(calls, max(0, step - delay)))


def test_the_prompt_is_known_from_the_start(watch):
    calls = watch(DKVCacheDecode(delay=1, refresh=None), start=4)
    assert not calls[2][1][:, :4].any()


def test_blocks_restart_the_count_of_steps(watch):
    calls = watch(DKVCacheDecode(delay=1, refresh=None), block=4, length=13)
    full = [step for step, (_, ran) in enumerate(calls) if ran.all()]
    assert full == [0, 1, 4, 5, 8, 9]
    whole = watch(DKVCacheDecode(delay=1, refresh=None, restart="request"), block=4, length=13)
    assert [step for step, (_, ran) in enumerate(whole) if ran.all()] == [0, 1]


@pytest.mark.parametrize("order", ["random", "left_to_right"])
@pytest.mark.parametrize("window", [0, 2])
def test_greedy_runs_on_the_next_the_last_and_a_window(watch, order, window):
    calls = watch(DKVCacheGreedy(refresh=None, window=window), order)
    for (before, _), (now, ran), (after, _) in zip(calls, calls[1:], calls[2:], strict=False):
        nearly = (now != after) | (before != now)  # decoded by this step, and by the one before
        assert ran[nearly].all()
        extra = ran & ~nearly
        assert extra.sum(1).le(window).all()
        assert (now[extra] == MASK).all()
        if window == 0:
            assert torch.equal(ran, nearly)


def nearest(masked: list[bool], centre: int, width: int) -> set[int]:
    """A window taken one position at a time, left first."""
    left = [k for k in range(centre - 1, -1, -1) if masked[k]]
    right = [k for k in range(centre + 1, len(masked)) if masked[k]]
    found: set[int] = set()
    go_left = True
    while len(found) < width and (left or right):
        side = left if (go_left and left) or not right else right
        found.add(side.pop(0))
        go_left = not go_left if left and right else go_left
    return found


@given(st.lists(st.booleans(), min_size=2, max_size=14), st.integers(0, 13), st.integers(1, 6))
@settings(deadline=None, max_examples=150)
def test_a_window_alternates_between_left_and_right(masked, centre, width):
    centre %= len(masked)
    line = torch.tensor([masked])
    at = torch.zeros_like(line)
    at[0, centre] = True
    found = set(find_window(at, line, width)[0].nonzero()[:, 0].tolist()) - {centre}
    expected = nearest(masked, centre, width)
    assert len(found) == len(expected)
    left = sum(k < centre for k in found)
    assert left in (sum(k < centre for k in expected), min(sum(masked[:centre]), (width + 1) // 2))
    # on each side, the nearest ones
    for side in (range(centre - 1, -1, -1), range(centre + 1, len(masked))):
        taken = [k in found for k in side if masked[k]]
        assert taken == sorted(taken, reverse=True)


def test_prefill_runs_the_prompt_once(watch):
    calls = watch(DKVCachePrefill(), start=4)
    assert calls[0][1].all()
    for _, ran in calls[1:]:
        assert not ran[:, :4].any()
        assert ran[:, 4:].all()


def test_pd_refreshes_all_but_the_prompt(watch):
    calls = watch(DKVCachePD(refresh=3), start=4)
    assert calls[0][1].all()
    for step, (_, ran) in enumerate(calls[1:], start=1):
        assert not ran[:, :4].any()
        if step % 3 == 0:
            assert ran[:, 4:].all()
        else:
            known = known_at(calls, step - 1)[:, 4:]
            assert torch.equal(ran[:, 4:], ~known)


def test_prefix_and_dual_cache_what_lies_outside_the_block(watch):
    for policy in (FastDLLMPrefix(), FastDLLMDual()):
        for step, (_, ran) in enumerate(watch(policy, block=4, length=13)):
            block, first = step // 4, step % 4 == 0
            if first:
                assert ran.all()
                continue
            begin = 1 + 4 * block
            end = begin + 4 if isinstance(policy, FastDLLMDual) else 13
            expected = torch.zeros(13, dtype=torch.bool)
            expected[begin:end] = True
            assert torch.equal(ran, expected.expand_as(ran))


def test_dllm_cache_has_intervals_of_its_own_for_prompt_and_response(watch):
    policy = DLLMCache(prompt_interval=6, response_interval=3, ratio=0.5)
    for step, (_, ran) in enumerate(watch(policy, start=4)):
        assert ran[:, :4].all() if step % 6 == 0 else not ran[:, :4].any()
        assert ran[:, 4:].sum(1).eq(8 if step % 3 == 0 else 4).all()


def test_d2_runs_on_what_was_decoded_and_on_few_masks(watch):
    policy = D2Cache(masked=2, nucleus=0.0, gap=0)
    calls = watch(policy, "confidence", block=4, length=13)
    for step, ((before, _), (now, ran)) in enumerate(pairwise(calls), 1):
        if step % 4 == 0:
            assert ran.all()
            continue
        begin = 1 + 4 * (step // 4)
        masks = torch.zeros_like(ran)
        masks[:, begin : begin + 4] = now[:, begin : begin + 4] == 13
        assert ran[before != now].all()
        assert (ran & ~masks).sum(1).eq((before != now).sum(1)).all()
        assert torch.equal((ran & masks).sum(1), masks.sum(1).clamp(max=2))


def test_the_parts_of_d2():
    known = torch.tensor([[True, False, False, False, True]])
    density = find_density(known, sigma=1.0)
    assert density[0].argmin() == 2
    assert torch.allclose(density[0], density[0].flip(0))
    score = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    among = torch.tensor([[True, False, True, True]])
    assert take_highest(score, among, 2).tolist() == [[False, False, True, True]]
    mass = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    everyone = torch.ones(1, 4, dtype=torch.bool)
    assert take_nucleus(mass, everyone, 0.5).tolist() == [[True, True, False, False]]
    assert not take_nucleus(mass, everyone & False, 0.5).any()
    wanted = torch.tensor([[True, False, False, True, False, False, False, True, False]])
    assert fill_gaps(wanted, 2).int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DKVCacheDecode(delay=-1), "delay of DKVCacheDecode is -1"),
        (lambda: DKVCacheDecode(refresh=0), "refresh of DKVCacheDecode is 0"),
        (lambda: DKVCacheGreedy(window=-1), "window of DKVCacheGreedy is -1"),
        (lambda: DKVCacheGreedy(centre="middle"), "centre is 'middle'"),
        (lambda: DLLMCache(ratio=0.0), r"ratio of DLLMCache is 0\.0"),
        (lambda: D2Cache(sigma=0.0), r"sigma 0\.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, words):
    with pytest.raises(PolicyError, match=words):
        make()
