"""The masked loop: the same session, engine and trace as the other drivers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from erta_framework import CFG, Callback, Engine, Policy, Reuse, TraceLogger, hookimpl
from erta_framework.config import build_policies
from erta_framework.errors import CapabilityError, InputError, PolicyError
from erta_framework.masked import (
    Decoder,
    MaskedLoop,
    MaskedRequest,
    MaskedSampler,
    MaskedSchedule,
    pad_prompts,
)
from erta_integrations.words import Permutations, Size, WordsModel, WordsNetwork
from erta_policies.adapters import MaxConsecutive, WarmUp
from erta_policies.dkvcache import DKVCacheDecode, DKVCacheGreedy
from erta_policies.easycache import EasyCache
from erta_policies.fastdllm import FastDLLMDual

TASK = Permutations(count=8)


def make_model(seed: int = 0) -> WordsModel:
    torch.manual_seed(seed)
    network = WordsNetwork(Size(symbols=TASK.mask_id + 1, width=32, heads=2, layers=2))
    for parameter in network.parameters():  # logits that really depend on the other symbols
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return WordsModel(network.eval().requires_grad_(False), TASK)


def decode(policies, *, ids=None, seeds=(0, 1, 2), schedule=None, decoder=None, **more):
    model = make_model()
    ids = model.make_ids(len(seeds)) if ids is None else ids
    decoder = decoder if decoder is not None else Decoder(order="random", temperature=1.0)
    loop = MaskedLoop(Engine(policies), schedule, decoder, more.pop("guidance", None))
    start = more.pop("start", 1)
    return loop.run(model, MaskedRequest(ids=ids, start=start, seeds=tuple(seeds), **more))


class CountedNetwork(torch.nn.Module):
    """Counts the positions that really go through a network."""

    def __init__(self, network: WordsNetwork) -> None:
        super().__init__()
        self.network, self.size, self.rows, self.calls = network, network.size, 0, 0

    def forward(self, ids, *rest):
        self.rows += ids.numel()
        self.calls += 1
        return self.network(ids, *rest)


@pytest.mark.parametrize("order", ["confidence", "random", "left_to_right"])
@pytest.mark.parametrize("schedule", [MaskedSchedule(), MaskedSchedule(steps=4, block=4)])
def test_every_order_decodes_everything_in_the_planned_steps(order, schedule):
    result = decode([], schedule=schedule, decoder=Decoder(order=order))
    assert (result.ids != TASK.mask_id).all()
    assert len(result.trace.steps) == (schedule.steps or 8)
    assert result.trace.steps[0].start == 1.0
    assert result.trace.steps[-1].end == 0.0


def test_left_to_right_decodes_one_column_a_step():
    model, seen = make_model(), []
    loop = MaskedLoop(Engine([]), MaskedSchedule(), Decoder(order="left_to_right"))
    request = MaskedRequest(ids=model.make_ids(2), start=1, seeds=(0, 1))
    loop.run(model, request, show=lambda index, ids: seen.append((ids == TASK.mask_id).sum(1)))
    assert [s.tolist() for s in seen] == [[7 - k] * 2 for k in range(8)]


@pytest.mark.parametrize(
    "policies",
    [
        [DKVCacheDecode(refresh=1)],
        [DKVCacheDecode(first=1000, refresh=None)],
        [WarmUp(steps=1000), DKVCacheDecode(delay=0, refresh=None)],
        [MaxConsecutive(steps=0), DKVCacheDecode(delay=0, refresh=None)],
    ],
    ids=["refresh-1", "all-rows", "warm-up", "max-consecutive"],
)
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_nothing_reused_is_bit_identical(policies, order):
    collected = []

    class Watch(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl(wrapper=True)
        def forward(self, call):
            output = yield
            collected.append(output)
            return output

    decoder = Decoder(order=order, temperature=1.0)
    plain = decode([Watch()], decoder=decoder)
    first, collected[:] = list(collected), []
    result = decode([Watch(), *policies], decoder=decoder)
    assert torch.equal(plain.ids, result.ids)
    assert all(torch.equal(a, b) for a, b in zip(first, collected, strict=True))
    assert result.trace.token_rows == result.trace.token_total


@pytest.mark.parametrize(
    "policy",
    [DKVCacheDecode(delay=d, refresh=None) for d in (0, 1, 2)] + [DKVCacheGreedy()],
    ids=repr,
)
def test_a_batch_equals_single_runs(policy):
    together = decode([policy], seeds=(3, 4, 5))
    for row, seed in enumerate((3, 4, 5)):
        alone = decode([policy], seeds=(seed,))
        assert torch.equal(alone.ids[0], together.ids[row])


def test_samples_that_decode_at_different_speeds_are_those_of_single_runs():
    decoder, schedule = Decoder(threshold=0.35, temperature=1.0), MaskedSchedule(block=4)
    policy = DKVCacheDecode(refresh=3)
    together = decode([policy], seeds=range(6), decoder=decoder, schedule=schedule)
    steps = set()
    for row in range(6):
        alone = decode([policy], seeds=(row,), decoder=decoder, schedule=schedule)
        assert torch.equal(alone.ids[0], together.ids[row])
        steps.add(len(alone.trace.steps))
    assert len(steps) > 1  # they did differ
    assert len(together.trace.steps) == max(steps)


def test_left_padding_changes_nothing():
    model = make_model()
    prompts = [[8, 1, 2], [8]]
    ids, seen, start = pad_prompts(prompts, 4, TASK.mask_id)
    policy = DKVCacheDecode(delay=1, refresh=4)
    both = decode([policy], ids=ids, seen=seen, start=start, seeds=(0, 1))
    short, _, short_start = pad_prompts(prompts[1:], 4, TASK.mask_id)
    alone = decode([policy], ids=short, start=short_start, seeds=(1,))
    assert torch.equal(both.ids[1, start:], alone.ids[0, short_start:])
    assert model.mask_id not in both.ids


def test_tokens_are_counted_where_the_network_runs():
    model = make_model()
    model.network = counted = CountedNetwork(model.network)
    loop = MaskedLoop(Engine([DKVCacheDecode(refresh=4)]), None, Decoder(order="random"))
    result = loop.run(model, MaskedRequest(ids=model.make_ids(3), start=1, seeds=(0, 1, 2)))
    assert counted.rows == result.trace.token_rows < result.trace.token_total
    assert counted.calls == result.trace.network_calls == 8
    assert result.trace.token_total == 8 * 3 * TASK.length


def test_delays_say_how_many_rows_are_computed():
    """One token a step of 8, two full steps: step i runs on what was unknown d steps ago."""
    for delay in (0, 1, 2, 3):
        result = decode([DKVCacheDecode(delay=delay, refresh=None)], seeds=(0,))
        expected = 2 * 9 + sum(8 - max(0, i - delay) for i in range(2, 8))
        assert result.trace.token_rows == expected


class ReuseAll(Policy):
    """Wants to reuse everything that is there."""

    traits = DKVCacheDecode().traits

    @hookimpl
    def decide(self, call):
        return Reuse("all", positions=torch.ones_like(call.x, dtype=torch.bool))


def test_a_rule_that_leaves_out_what_is_decoded_is_named():
    with pytest.raises(PolicyError, match=r"ReuseAll\(\) left out positions"):
        decode([ReuseAll()])


def test_edited_and_remasked_tokens_leave_the_cache_at_once():
    """Every row that runs is checked against the tokens that it was computed for."""
    model = make_model()
    calls = []

    class Watch(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl(wrapper=True)
        def forward(self, call):
            output = yield
            ran = torch.zeros_like(call.x, dtype=torch.bool)
            ran |= call.feature("age") == 0
            calls.append((call.x, ran))
            return output

    for decoder in (
        Decoder(edit_threshold=0.05, temperature=1.0),
        Decoder(remask=1, temperature=1.0),
    ):
        calls.clear()
        loop = MaskedLoop(Engine([Watch(), ReuseKnown()]), MaskedSchedule(), decoder)
        loop.run(model, MaskedRequest(ids=model.make_ids(4), start=1, seeds=(0, 1, 2, 3)))
        edits = 0
        for (before, _), (now, ran) in pairwise(calls):
            changed = (before != now) & (before != TASK.mask_id)
            edits += int(changed.sum())
            assert ran[changed].all()
        assert edits > 0


class ReuseKnown(Policy):
    """At odd steps, reuses everything that is not masked, at once."""

    traits = replace(DKVCacheDecode().traits, requires=frozenset({"signal:masked"}))

    @hookimpl
    def decide(self, step, call):
        return Reuse("known", positions=~call.feature("masked")) if step.index % 2 else None


def test_an_edited_token_comes_back_with_the_delay():
    seen = []

    class Watch(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl(wrapper=True)
        def decide(self, call):
            decision = yield
            seen.append((call.x, call.feature("known_for"), decision.positions))
            return decision

    decode(
        [Watch(), DKVCacheDecode(delay=2, refresh=None)],
        decoder=Decoder(edit_threshold=0.05, temperature=1.0),
    )
    for (before, _, _), (now, known, reused) in pairwise(seen):
        changed = before != now
        assert known[changed & (now != TASK.mask_id)].eq(1).all()
        assert not reused[changed].any()


def test_a_latent_policy_is_refused_by_name():
    with pytest.raises(CapabilityError, match=r"EasyCache\(.*decides for latents.*samples tokens"):
        decode([EasyCache(threshold=0.1)])


def test_a_token_rule_is_refused_on_latents():
    from erta_framework import FlowEuler, SamplingLoop

    with pytest.raises(CapabilityError, match=r"DKVCacheDecode\(.*decides for tokens"):
        SamplingLoop(Engine([DKVCacheDecode()]), FlowEuler())


def test_greedy_needs_an_order_that_is_known():
    with pytest.raises(CapabilityError, match=r"DKVCacheGreedy\(.*signal:next"):
        decode([DKVCacheGreedy()], decoder=Decoder(order="confidence"))


def test_requests_do_not_see_each_other_and_an_interrupt_leaves_nothing():
    model, stores = make_model(), []
    original = model.open
    model.open = lambda **given: stores.append(original(**given)) or stores[-1]
    loop = MaskedLoop(Engine([DKVCacheDecode(refresh=None)]), None, Decoder(order="random"))
    request = MaskedRequest(ids=model.make_ids(2), start=1, seeds=(0, 1))

    def stop(step):
        if step.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(model, request, observe=stop)
    assert stores[-1].nbytes == 0
    first, second = loop.run(model, request), loop.run(model, request)
    assert torch.equal(first.ids, second.ids)
    assert first.trace.driver_bytes > 0
    assert all(store.nbytes == 0 for store in stores)


@pytest.mark.parametrize("batched", [False, True])
def test_guidance_combines_the_prompted_and_the_unprompted_branch(batched):
    ids = make_model().make_ids(2)
    ids[:, 1:3] = torch.tensor([4, 2])
    plain = {"ids": ids, "start": 3, "seeds": (0, 1), "decoder": Decoder(temperature=1.0)}
    one = decode([], guidance=CFG(scale=1.0, batched=batched), **plain)
    assert torch.equal(one.ids, decode([], **plain).ids)
    more = decode([], guidance=CFG(scale=4.0, batched=batched), **plain)
    assert not torch.equal(more.ids, one.ids)
    kept = decode([DKVCacheDecode(refresh=1)], guidance=CFG(scale=4.0, batched=batched), **plain)
    assert torch.equal(kept.ids, more.ids)


def test_batched_and_separate_guidance_agree_under_a_rule():
    ids = make_model().make_ids(2)
    ids[:, 1:3] = torch.tensor([4, 2])
    given = {"ids": ids, "start": 3, "seeds": (0, 1), "decoder": Decoder(temperature=1.0)}
    policy = DKVCacheDecode(refresh=None)
    apart = decode([policy], guidance=CFG(scale=3.0), **given)
    together = decode([policy], guidance=CFG(scale=3.0, batched=True), **given)
    assert torch.equal(apart.ids, together.ids)
    assert apart.trace.token_rows == together.trace.token_rows


def test_a_branch_that_paused_reuses_no_keys_of_other_tokens():
    ids = make_model().make_ids(2)
    ids[:, 1:3] = torch.tensor([4, 2])
    result = decode(
        [DKVCacheDecode(refresh=None)],
        ids=ids,
        start=3,
        seeds=(0, 1),
        decoder=Decoder(temperature=1.0, remask=1),
        guidance=CFG(scale=3.0, start=0.5, stop=1.0),
    )
    assert (result.ids != TASK.mask_id).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": (0,)}, "1 seeds for 2 samples"),
        ({"start": 9}, "outside 9 tokens"),
        ({"start": 3}, "holds the mask"),
    ],
)
def test_requests_that_do_not_fit_are_refused(change, words):
    given = {"ids": make_model().make_ids(2), "start": 1, "seeds": (0, 1)} | change
    with pytest.raises(InputError, match=words):
        decode([], **given)


def test_the_sampler_splits_into_batches_without_changing_a_sample():
    model, ids = make_model(), make_model().make_ids(5)
    rule = [DKVCacheDecode(refresh=4)]
    decoder = Decoder(order="random", temperature=1.0)
    small = MaskedSampler(rule, decoder=decoder, batch_size=2).sample(model, ids, start=1, seed=7)
    large = MaskedSampler(rule, decoder=decoder, batch_size=8).sample(model, ids, start=1, seed=7)
    assert torch.equal(small.ids, large.ids)
    assert len(small.traces) == 3
    assert small.rows_computed == large.rows_computed < 1


def test_dual_runs_on_the_block_alone():
    result = decode([FastDLLMDual()], schedule=MaskedSchedule(block=4), seeds=(0,))
    assert result.trace.token_rows == 2 * (9 + 3 * 4)


class Recorder(Callback):
    """Notes what callbacks are told."""

    def __init__(self):
        self.events = []

    def on_run_start(self, run):
        self.events.append(("start", run.samples, run.batches, run.steps))

    def on_step(self, step):
        self.events.append(("step", step.index, step.calls[0].reason))

    def on_batch_end(self, batch):
        self.events.append(("batch", tuple(batch.samples.shape), batch.seeds))
        batch.samples.fill_(-1)  # a copy

    def on_run_end(self, error):
        self.events.append(("end", error))


def test_callbacks_are_those_of_the_other_samplers(tmp_path):
    model, watch = make_model(), Recorder()
    rule = DKVCacheDecode(refresh=4)
    sampler = MaskedSampler([rule], [watch, TraceLogger(tmp_path / "log.jsonl")], batch_size=2)
    samples = sampler.sample(model, model.make_ids(3), start=1)
    kinds = [event[0] for event in watch.events]
    assert kinds == ["start", *["step"] * 8, "batch", *["step"] * 8, "batch", "end"]
    assert watch.events[0] == ("start", 3, 2, 8)
    assert watch.events[1] == ("step", 0, "cold")
    assert watch.events[2] == ("step", 1, "known for more than 1 steps")
    assert (samples.ids >= 0).all()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(kinds)


def test_a_rule_is_made_from_a_configuration():
    (policy,) = build_policies([{"dkvcache": {"delay": 2, "refresh": None}}])
    assert repr(policy) == repr(DKVCacheDecode(delay=2, refresh=None))


def test_a_reuse_without_positions_is_refused():
    class All(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl
        def decide(self):
            return Reuse("all of it")

    with pytest.raises(PolicyError, match=r"Reuse\('all of it'\) says not which tokens"):
        decode([All()])


def test_positions_of_another_shape_are_refused():
    class Wrong(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl
        def decide(self):
            return Reuse("some", positions=torch.ones(1, 2, dtype=torch.bool))

    with pytest.raises(CapabilityError, match=r"positions to reuse are \(1, 2\)"):
        decode([Wrong()])


def test_a_sample_that_is_done_makes_no_other_run_on_more():
    model = make_model()
    ids = model.make_ids(2)
    ids[0, 1:5] = torch.arange(4)  # four masks are left of it, eight of the other
    result = decode(
        [FastDLLMDual()],
        ids=ids,
        seeds=(0, 1),
        schedule=MaskedSchedule(block=4),
        decoder=Decoder(threshold=0.999, temperature=1.0),
    )
    steps = len(result.trace.steps)
    assert steps == 8
    # both samples begin a block at steps 0 and 4; the second block of the first sample is step 0
    assert result.trace.token_rows == 2 * (2 * 9 + (steps - 2) * 4)


def test_the_first_layers_may_run_on_every_position_and_count_as_work():
    class Above(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl
        def decide(self, call):
            return Reuse("above", positions=call.feature("known_for") > 1, first_layer=1)

    trace = decode([Above()], seeds=(0,)).trace
    assert trace.token_rows < trace.token_total
    # one layer of two on all, the other on the rows
    rows = trace.token_rows / trace.token_total
    assert trace.work == pytest.approx(trace.network_samples * (1 + rows) / 2)
