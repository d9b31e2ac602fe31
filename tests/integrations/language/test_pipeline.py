"""diffusers' LLaDA2Pipeline, unmodified, through its model."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

from erta_framework import Policy, Reuse, Traits, hookimpl
from erta_framework.errors import (
    CapabilityError,
    ConflictError,
    InputError,
    ProtocolError,
    UnusedWarning,
)
from erta_integrations.language import attach_language
from erta_policies.adapters import WarmUp
from erta_policies.dkvcache import DKVCacheDecode
from erta_policies.easycache import EasyCache
from erta_policies.fastdllm import FastDLLMDual, FastDLLMPrefix
from tiny_language import MASK, make_llama


def make_pipe() -> LLaDA2Pipeline:
    model = make_llama()
    model.config.is_causal = False
    pipe = LLaDA2Pipeline(model=model, scheduler=BlockRefinementScheduler(block_length=8))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, batch: int = 2, **more):
    ids = torch.randint(MASK, (batch, 6), generator=torch.Generator().manual_seed(0))
    given = {
        "gen_length": 18,
        "block_length": 8,
        "num_inference_steps": 8,
        "sampling_method": "greedy",
        "threshold": 0.9,
        "editing_threshold": None,
        "eos_early_stop": False,
        "mask_token_id": MASK,
        "output_type": "seq",
    }
    return pipe(input_ids=ids, **(given | more)).sequences


@pytest.mark.parametrize("more", [{}, {"editing_threshold": 0.3}, {"batch": 1}])
@pytest.mark.parametrize(
    "policies",
    [[], [DKVCacheDecode(refresh=1)], [WarmUp(steps=1000), FastDLLMDual()]],
    ids=["none", "refresh-1", "warm-up"],
)
def test_nothing_reused_gives_the_same_tokens(policies, more):
    pipe = make_pipe()
    plain = sample(pipe, **more)
    with attach_language(pipe, policies, mask_id=MASK) as run:
        assert torch.equal(sample(pipe, **more), plain)
    for trace in run.traces:
        assert trace.token_rows == trace.token_total
    assert len(run.traces) == 3  # blocks
    assert torch.equal(sample(pipe, **more), plain)


def test_rules_compute_fewer_tokens_and_every_mask_is_decoded():
    pipe = make_pipe()
    for policy in (DKVCacheDecode(refresh=None), FastDLLMPrefix(), FastDLLMDual()):
        with attach_language(pipe, policy, mask_id=MASK) as run:
            assert (sample(pipe) != MASK).all()
        assert sum(t.token_rows for t in run.traces) < sum(t.token_total for t in run.traces)
        assert "tokens computed" in run.summary()


def test_dual_cache_runs_on_the_block_alone_after_its_first_call():
    pipe = make_pipe()
    with attach_language(pipe, FastDLLMDual(), mask_id=MASK) as run:
        sample(pipe, batch=1)
    for number, trace in enumerate(run.traces):
        width = 8 * (number + 1)
        assert trace.token_rows == width + 8 * (trace.network_calls - 1)


def test_calls_are_counted_where_the_model_is_called():
    pipe, seen = make_pipe(), []
    pipe.model.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    with attach_language(pipe, DKVCacheDecode(refresh=3), mask_id=MASK) as run:
        sample(pipe)
    seen = seen[2:]  # whether it attends ahead was tried first
    assert sum(seen) == sum(trace.token_rows for trace in run.traces)
    assert len(seen) == sum(trace.network_calls for trace in run.traces)


def test_an_edited_token_runs_at_once():
    pipe, calls = make_pipe(), []

    class Watch(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl(wrapper=True)
        def forward(self, call):
            output = yield
            calls.append((call.x, call.feature("age") == 0))
            return output

    class EverySecond(Policy):
        traits = DKVCacheDecode().traits

        @hookimpl
        def decide(self, step, call):
            every = torch.ones_like(call.x, dtype=torch.bool)
            return Reuse("all", positions=every) if step.index % 2 else None

    with attach_language(pipe, [Watch(), EverySecond()], mask_id=MASK):
        sample(pipe, editing_threshold=0.05, threshold=0.3)
    edits = 0
    for (before, _), (now, ran) in pairwise(calls):
        if before.shape == now.shape:
            changed = (before != now) & (before != MASK)
            edits += int(changed.sum())
            assert ran[changed].all()
    assert edits > 0


def test_left_padding_stays_masked():
    pipe = make_pipe()
    ids = torch.randint(MASK, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    results = []
    for filling in (0, 5):
        ids[0, :3] = filling
        with attach_language(pipe, DKVCacheDecode(refresh=None), mask_id=MASK):
            found = pipe(
                input_ids=ids,
                attention_mask=mask,
                gen_length=10,
                block_length=8,
                num_inference_steps=8,
                sampling_method="greedy",
                editing_threshold=None,
                eos_early_stop=False,
                mask_token_id=MASK,
                output_type="seq",
            )
        results.append(found.sequences)
    assert torch.equal(*results)


def test_everything_is_put_back_also_after_an_interrupt():
    pipe = make_pipe()
    model, config, names = pipe.model, dict(pipe.config), set(vars(pipe.scheduler))
    plain = sample(pipe)

    def stop(pipe, step, index, given):
        if step == 5:
            raise KeyboardInterrupt
        return given

    with (
        pytest.raises(KeyboardInterrupt),
        attach_language(pipe, DKVCacheDecode(), mask_id=MASK) as run,
    ):
        sample(pipe, callback_on_step_end=stop)
    assert pipe.model is model
    assert dict(pipe.config) == config
    assert set(vars(pipe.scheduler)) - names <= {"timesteps", "num_inference_steps"}
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert torch.equal(sample(pipe), plain)
    assert run.newest is not None


def test_a_request_after_an_aborted_one_starts_afresh():
    pipe = make_pipe()
    with attach_language(pipe, DKVCacheDecode(refresh=None), mask_id=MASK):
        first = sample(pipe)

    def stop(pipe, step, index, given):
        raise RuntimeError("enough")

    with attach_language(pipe, DKVCacheDecode(refresh=None), mask_id=MASK):
        with pytest.raises(RuntimeError, match="enough"):
            sample(pipe, callback_on_step_end=stop)
        assert torch.equal(sample(pipe), first)


def test_a_call_that_is_interrupted_leaves_nothing_and_says_why():
    pipe, calls = make_pipe(), []

    def stop(module, args, given):
        calls.append(given["input_ids"].shape)
        if len(calls) == 5:  # the first two try whether it attends ahead
            raise KeyboardInterrupt

    with attach_language(pipe, DKVCacheDecode(refresh=None), mask_id=MASK):
        first = sample(pipe)
    handle = pipe.model.model.register_forward_pre_hook(stop, with_kwargs=True)
    with attach_language(pipe, DKVCacheDecode(refresh=None), mask_id=MASK) as run:
        with pytest.raises(KeyboardInterrupt):
            sample(pipe)
        assert run.traces[-1].stopped == "KeyboardInterrupt"
        assert run.traces[-1].driver_bytes > 0
        assert (run._session, run._watched, run._branch) == (None, None, None)
        handle.remove()
        assert torch.equal(sample(pipe), first)
    assert not any(trace.stopped for trace in run.traces[1:])


def test_a_cache_that_was_never_used_says_so():
    pipe = make_pipe()

    def forget_to_enter():
        attached = attach_language(pipe, DKVCacheDecode(), mask_id=MASK)
        sample(pipe)
        assert attached.traces == []

    with pytest.warns(UnusedWarning, match="attachment to LLaDA2Pipeline was never entered"):
        forget_to_enter()
    message = "nothing was reused in 3 requests of LLaDA2Pipeline, although dkv_cache_decode may"
    with (
        pytest.warns(UnusedWarning, match=message),
        attach_language(pipe, DKVCacheDecode(refresh=1), mask_id=MASK),
    ):
        sample(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for policies in ([], [DKVCacheDecode()]):
            with attach_language(pipe, policies, mask_id=MASK):
                sample(pipe)
        attach_language(pipe, DKVCacheDecode(), mask_id=MASK)  # who only asks is not warned


def test_the_newest_traces_are_kept_and_the_others_stay_counted():
    pipe = make_pipe()
    with attach_language(pipe, "dkvcache", mask_id=MASK, refresh=4, keep_traces=None) as run:
        sample(pipe)
    assert [trace.request_id for trace in run.traces] == ["block-0", "block-1", "block-2"]
    calls = sum(trace.network_calls for trace in run.traces[:2])
    with attach_language(pipe, "dkvcache", mask_id=MASK, refresh=4, keep_traces=1) as run:
        sample(pipe)
    assert [trace.request_id for trace in run.traces] == ["block-2"]
    assert run.summary().startswith(f"2 earlier requests: {calls} network calls")
    with pytest.raises(InputError, match="keep_traces is 0, it must be at least 1"):
        attach_language(pipe, "dkvcache", mask_id=MASK, keep_traces=0)


def test_reuse_in_a_block_whose_trace_was_dropped_is_no_cause_to_warn():
    pipe, lengths = make_pipe(), set()

    class NotInTheLast(Policy):
        traits = Traits(serves=frozenset({"tokens"}))

        @hookimpl
        def decide(self, step, call):
            lengths.add(call.x.shape[1])
            return Reuse("given", positions=call.feature("given")) if len(lengths) < 3 else None

    with attach_language(pipe, [NotInTheLast()], mask_id=MASK, keep_traces=1) as run:
        sample(pipe)
    (last,) = run.traces
    assert last.token_rows == last.token_total
    assert len(last.steps) > 2
    with attach_language(pipe, [NotInTheLast()], mask_id=MASK, keep_traces=None) as run:
        lengths.clear()
        sample(pipe)
    assert run.traces[1].token_rows < run.traces[1].token_total


def test_what_cannot_work_is_refused():
    pipe = make_pipe()
    with pytest.raises(CapabilityError, match=r"EasyCache\(.*samples tokens"):
        attach_language(pipe, EasyCache(threshold=0.1), mask_id=MASK)
    with pytest.raises(CapabilityError, match="no tokenizer with a mask token"):
        attach_language(pipe, DKVCacheDecode())
    with (
        attach_language(pipe, DKVCacheDecode(), mask_id=MASK),
        pytest.raises(ConflictError, match="replaced already"),
        attach_language(pipe, DKVCacheDecode(), mask_id=MASK),
    ):
        pass
    with (
        attach_language(pipe, DKVCacheDecode(), mask_id=MASK, post_steps=0),
        pytest.raises(ProtocolError, match="attach with post_steps above 0"),
    ):
        sample(pipe, editing_threshold=0.01, sampling_method="multinomial", temperature=1.0)
    ids = torch.zeros(1, 4, dtype=torch.long)
    with (
        attach_language(pipe, DKVCacheDecode(), mask_id=MASK),
        pytest.raises(ProtocolError, match="outside of the pipeline"),
    ):
        pipe.model(ids, attention_mask=torch.ones_like(ids), position_ids=ids)


def test_a_causal_model_is_refused_since_its_prefix_is_exact():
    pipe = make_pipe()
    pipe.model.config.is_causal = True
    with (
        attach_language(pipe, DKVCacheDecode(), mask_id=MASK),
        pytest.raises(CapabilityError, match="attends to earlier tokens alone"),
    ):
        sample(pipe)
