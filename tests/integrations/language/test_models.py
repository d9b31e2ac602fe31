"""Keys and values by position on models that are not modified."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from erta_framework import Engine
from erta_framework.errors import CapabilityError, InputError, ProtocolError
from erta_framework.masked import (
    FIRST_LAYER,
    Decoder,
    MaskedLoop,
    MaskedRequest,
    MaskedSchedule,
    pad_prompts,
    select_rows,
)
from erta_integrations.language import HuggingFaceModel, KeyValueStore, LLaDAModel
from erta_policies.d2cache import D2Cache
from erta_policies.dkvcache import DKVCacheDecode, DKVCachePD
from erta_policies.dllmcache import DLLMCache
from tiny_language import MASK, DreamLike, LLaDALike, make_llama, make_qwen

MODELS = {
    "llama": lambda: HuggingFaceModel(make_llama(), MASK),
    "llama-eager": lambda: HuggingFaceModel(make_llama("eager"), MASK),
    "qwen": lambda: HuggingFaceModel(make_qwen(), MASK),
    "dream": lambda: HuggingFaceModel(DreamLike(), MASK, shift="un"),
    "dream-both": lambda: HuggingFaceModel(DreamLike(), MASK, shift="un_right"),
    "llada": lambda: LLaDAModel(LLaDALike(), MASK),
}


@pytest.fixture(params=list(MODELS), ids=list(MODELS))
def model(request):
    with torch.no_grad():
        yield MODELS[request.param]()


def draw_ids(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(MASK, (batch, length), generator=generator)
    return ids.masked_fill(torch.rand(batch, length, generator=generator) < 0.5, MASK)


def decode(model, policies, ids, start=4, **more):
    decoder = more.pop("decoder", Decoder(temperature=1.0))
    loop = MaskedLoop(Engine(policies), more.pop("schedule", MaskedSchedule()), decoder)
    seeds = more.pop("seeds", tuple(range(len(ids))))
    return loop.run(model, MaskedRequest(ids=ids, start=start, seeds=seeds, **more))


def make_prompted(batch: int = 2, length: int = 12) -> torch.Tensor:
    ids = torch.randint(MASK, (batch, length), generator=torch.Generator().manual_seed(1))
    ids[:, 4:] = MASK
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_a_random_subset_against_fresh_keys_equals_the_full_pass(model, seed):
    ids = draw_ids(seed=seed)
    full, store = model.run(ids), model.open()
    assert torch.equal(model.run(ids, store=store), full)  # all rows, the same bits
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    rows = select_rows(wanted)
    part = model.run(ids, store=store, rows=rows)
    assert (part - rows.gather(full)).abs().max() < 1e-5


def test_a_row_reads_the_keys_that_are_held_and_not_those_of_the_new_tokens(model):
    old, new = draw_ids(seed=0), draw_ids(seed=1)
    store = model.open()
    model.run(old, store=store)
    wanted = torch.zeros_like(old, dtype=torch.bool)
    wanted[:, 3:6] = True
    mixed = torch.where(wanted, new, old)
    part = model.run(new, store=store, rows=select_rows(wanted))
    # the rows see the new tokens of the subset and the old keys of everything else
    assert not torch.allclose(part, model.run(new)[:, 3:6], atol=1e-3)
    first = model.open()
    model.run(old, store=first)
    again = model.run(mixed, store=first, rows=select_rows(wanted))
    assert torch.equal(part, again)


def test_refresh_one_has_the_same_bits_and_a_rule_computes_fewer_rows(model):
    ids = make_prompted()
    plain = decode(model, [], ids)
    assert torch.equal(decode(model, [DKVCacheDecode(refresh=1)], ids).ids, plain.ids)
    kept = decode(model, [DKVCacheDecode(refresh=4)], ids)
    assert kept.trace.token_rows < plain.trace.token_rows
    assert (kept.ids != MASK).all()


@pytest.mark.parametrize("policy", [DKVCacheDecode(refresh=None), DKVCachePD()], ids=repr)
def test_a_batch_equals_single_runs(model, policy):
    ids = make_prompted(3)
    together = decode(model, [policy], ids)
    for row in range(3):
        alone = decode(model, [policy], ids[row : row + 1], seeds=(row,))
        assert torch.equal(alone.ids[0], together.ids[row])


def test_left_padding_is_never_attended_to(model):
    ids, seen, start = pad_prompts([[5, 6, 7], [8]], 5, MASK)
    policy = DKVCacheDecode(refresh=3)
    both = decode(model, [policy], ids, start, seen=seen)
    short, _, short_start = pad_prompts([[8]], 5, MASK)
    alone = decode(model, [policy], short, short_start, seeds=(1,))
    assert torch.equal(both.ids[1, start:], alone.ids[0, short_start:])
    other = ids.masked_fill(~seen, 3)  # what stands in the padding has no effect
    assert torch.equal(
        decode(model, [policy], other, start, seen=seen).ids[:, start:], both.ids[:, start:]
    )


def test_values_and_attention_serve_the_rules_that_ask(model):
    ids = make_prompted()
    for policy, signal in (
        (DLLMCache(response_interval=3), "value_similarity"),
        (D2Cache(masked=3), "attention"),
    ):
        if f"signal:{signal}" in model.capabilities:
            result = decode(model, [policy], ids)
            assert result.trace.token_rows < result.trace.token_total
        else:
            with pytest.raises(CapabilityError, match=f"requires signal:{signal}"):
                decode(model, [policy], ids)


def test_similarity_is_one_where_nothing_below_changed_and_less_where_a_token_did():
    model, ids = HuggingFaceModel(make_llama(), MASK), draw_ids()
    with torch.no_grad():
        store = model.open()
        model.run(ids, store=store)
        same, layers = model.value_similarity(ids, store, None)
        changed = ids.clone()
        changed[:, 5] = (changed[:, 5] + 1) % MASK
        other, _ = model.value_similarity(changed, store, None)
    assert layers == 1
    assert (same - 1).abs().max() < 1e-5
    assert other.argmin(1).eq(5).all()


def test_attention_rollout_sums_to_one():
    model, ids = HuggingFaceModel(make_llama("eager"), MASK), draw_ids()
    with torch.no_grad():
        store = model.open(attention=True)
        model.run(ids, store=store)
        rollout = store.attention()
        assert torch.allclose(rollout.sum(-1), torch.ones(2, 12), atol=1e-5)
        before = rollout.clone()
        model.run(ids, store=store, rows=select_rows(ids == MASK))
        assert torch.allclose(store.attention(), before, atol=1e-5)


def test_models_are_left_as_they_were(model):
    names = [
        n for n, m in model.model.named_modules() if "attention" in vars(m) or "forward" in vars(m)
    ]
    assert names == []
    decode(model, [DKVCacheDecode()], make_prompted())
    found = [
        n for n, m in model.model.named_modules() if "attention" in vars(m) or "forward" in vars(m)
    ]
    assert found == []


def test_an_exception_inside_a_llada_call_puts_attention_back():
    model = LLaDAModel(LLaDALike(), MASK)
    blocks = model.model.transformer["blocks"]
    handle = blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        model.run(draw_ids(), store=model.open())
    handle.remove()
    assert all("attention" not in vars(block) for block in blocks)


def test_a_second_owner_of_attention_is_refused():
    model = LLaDAModel(LLaDALike(), MASK)
    model.model.transformer["blocks"][0].attention = lambda *_: None
    with pytest.raises(CapabilityError, match="was replaced on the instance"):
        model.run(draw_ids(), store=model.open())


def test_models_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(CapabilityError, match="num_hidden_layers"):
        HuggingFaceModel(torch.nn.Linear(2, 2), MASK)
    with pytest.raises(CapabilityError, match="has no block with attention"):
        LLaDAModel(make_llama(), MASK)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        HuggingFaceModel.from_folder(tmp_path)


def test_a_model_is_loaded_from_a_folder(tmp_path):
    original = make_llama()
    original.save_pretrained(tmp_path)
    model = HuggingFaceModel.from_folder(tmp_path, mask_id=MASK)
    ids = draw_ids()
    with torch.no_grad():
        assert torch.equal(model.run(ids), HuggingFaceModel(original, MASK).run(ids))
    with pytest.raises(InputError, match="names no mask_token_id"):
        HuggingFaceModel.from_folder(tmp_path)


def test_a_model_of_lladas_kind_is_loaded_from_a_folder(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    asked = []

    def load(path, **options):
        asked.append((path, options["local_files_only"]))
        return LLaDALike()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    model = LLaDAModel.from_folder(tmp_path, mask_id=MASK, trust_remote_code=True)
    assert type(model) is LLaDAModel
    assert asked == [(tmp_path, True)]


def test_a_store_refuses_rows_that_do_not_fit():
    store = KeyValueStore()
    store.begin(None, length=4)
    with pytest.raises(ProtocolError, match="keys of 3 positions, the call runs on 4"):
        store.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2), 0)
    store.begin(select_rows(torch.tensor([[True, False, False, False]])), length=4)
    with pytest.raises(ProtocolError, match="holds no keys"):
        store.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)


def test_first_layers_on_every_position_are_refused_where_they_cannot_run(model):
    if FIRST_LAYER in model.capabilities:
        return
    with pytest.raises(CapabilityError, match="cannot run its first"):
        model.run(draw_ids(), store=model.open(), first_layer=1)


@pytest.mark.parametrize("first_layer", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", [make_llama, lambda: make_llama("eager"), make_qwen])
def test_the_first_layers_may_run_on_every_position(make, padded, first_layer):
    """Against fresh keys the rows equal the full pass; below the layer, old keys do not matter."""
    model, ids = HuggingFaceModel(make(), MASK), draw_ids(length=9)
    assert FIRST_LAYER in model.capabilities
    seen = torch.ones_like(ids, dtype=torch.bool)
    seen[0, :3] = not padded
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    wanted[0, 4:] = True  # the samples need different numbers of rows
    rows = select_rows(wanted)
    counted = []
    for layer in model.model.model.layers:
        layer.register_forward_hook(lambda _, args, out: counted.append(out.shape[1]))
    with torch.no_grad():
        full = model.run(ids, seen=seen)
        store = model.open(attention="signal:attention" in model.capabilities)
        model.run(ids, seen=seen, store=store)
        # all held of the first layers is wrong: they run on every position, and so write it anew
        for layer in range(first_layer):
            store._values[layer].fill_(7.0)
        counted.clear()
        part = model.run(ids, seen=seen, store=store, rows=rows, first_layer=first_layer)
    assert counted == [9] * first_layer + [rows.index.shape[1]] * (3 - first_layer)
    assert part.shape[1] == rows.index.shape[1]
    keep = ~rows.padding & rows.gather(seen)
    torch.testing.assert_close(part[keep], rows.gather(full)[keep], atol=1e-5, rtol=1e-4)
    assert not any(layer._forward_pre_hooks for layer in model.model.model.layers)


def test_hooks_of_the_first_layers_are_removed_after_an_exception():
    model = HuggingFaceModel(make_llama(), MASK)
    ids, store = draw_ids(), model.open()

    def fail(*_):
        raise RuntimeError("enough")

    with torch.no_grad():
        model.run(ids, store=store)
        layers = model.model.model.layers
        handle = layers[2].register_forward_hook(fail)
        rows = select_rows(torch.arange(12).expand(2, 12) < 4)
        with pytest.raises(RuntimeError, match="enough"):
            model.run(ids, store=store, rows=rows, first_layer=1)
        handle.remove()
        assert not any(layer._forward_pre_hooks for layer in layers)
