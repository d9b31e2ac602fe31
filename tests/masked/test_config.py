"""Configurations that decode tokens: what they make, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erta_framework import CFG
from erta_framework.config import (
    MaskedRunConfig,
    RunConfig,
    build_decoder,
    build_engine,
    build_masked_run,
    build_run,
    load_masked_config,
    load_run,
)
from erta_framework.errors import CapabilityError, ConfigError, InputError
from erta_framework.masked import (
    ORDERS,
    ConfidenceDecoder,
    Decoder,
    MaskedSampler,
    MaskedSchedule,
    RandomDecoder,
    TextTokenModel,
    open_decoder_catalogue,
)
from erta_integrations.words import WordsModel, load_permutations_model, load_words_model
from erta_policies.dkvcache import DKVCacheDecode

WORDS = """
model: words
policies: [{dkvcache: {delay: 1, refresh: 8}}]
decoder: {random: {temperature: 0.7}}
steps: 8
block: 8
seed: 3
"""


@pytest.fixture(scope="module")
def model() -> WordsModel:
    return load_words_model()


def test_every_order_has_a_decoder_of_its_name() -> None:
    catalogue = open_decoder_catalogue(only=())
    assert set(catalogue.names()) == set(ORDERS)
    for name in ORDERS:
        assert build_decoder(name).order == name
        assert {e.distribution for e in catalogue.entries()} == {"erta-framework"}


@pytest.mark.parametrize("order", ORDERS)
def test_a_decoder_by_name_decodes_as_the_order_does(order: str, model: WordsModel) -> None:
    options = {"temperature": 0.5, "threshold": 0.95}
    named = MaskedSampler(decoder=build_decoder({order: options}), accelerator="cpu")
    plain = MaskedSampler(decoder=Decoder(order=order, **options), accelerator="cpu")  # type: ignore[arg-type]
    ids = model.make_ids(4)
    assert torch.equal(named.sample(model, ids, seed=5).ids, plain.sample(model, ids, seed=5).ids)


def test_a_file_makes_the_sampler_that_python_makes(tmp_path: Path, model: WordsModel) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(WORDS)
    config = load_masked_config(path, ["policies.0.dkvcache.refresh=4"])
    assert repr(config) == repr(load_run(path, ["policies.0.dkvcache.refresh=4"]))
    expected = MaskedSampler(
        [DKVCacheDecode(delay=1, refresh=4)],
        schedule=MaskedSchedule(steps=8, block=8),
        decoder=RandomDecoder(temperature=0.7),
    ).sample(model, model.make_ids(3), seed=3)
    found = config.make_sampler().sample(model, model.make_ids(3), seed=config.seed)
    assert torch.equal(found.ids, expected.ids)
    assert found.rows_computed == expected.rows_computed < 1


def test_the_key_decoder_tells_the_kinds_apart(tmp_path: Path) -> None:
    assert isinstance(load_run(None, ["steps=4"]), RunConfig)
    assert isinstance(load_run(None, ["decoder=confidence"]), MaskedRunConfig)
    with pytest.raises(ConfigError, match="decoder is 'confidence': such a configuration decodes"):
        build_run({"decoder": "confidence"})
    with pytest.raises(ConfigError, match=r"configuration of tokens\.decoder is missing"):
        build_masked_run({"steps": 4})


def test_policies_of_such_a_file_can_be_attached(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(WORDS)
    engine, memory = build_engine(path, {})
    assert (repr(engine.policies), memory) == (repr((DKVCacheDecode(delay=1, refresh=8),)), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoder": "os.system"}, "unknown decoder 'os.system'; known: confidence"),
        ({"decoder": {"_target_": "os.system"}}, "decoder is .*write a name or"),
        ({"decoder": {"random": {"order": "confidence"}}}, "decoder.random: unknown key 'order'"),
        ({"decoder": {"random": {"temperature": "hot"}}}, "decoder.random.temperature"),
        ({"decoder": "random", "solver": "ddim"}, "configuration of tokens: unknown key 'solver'"),
        ({"decoder": "random", "steps": 20_000}, "steps is 20000; the most is 10000"),
        ({"decoder": "random", "samples": 0}, "samples is 0; the least is 1"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_masked_run(values)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="length is 0, it must be at least 1"):
        MaskedRunConfig(decoder=ConfidenceDecoder(), length=0)
    with pytest.raises(InputError, match="block of the masked schedule is 0"):
        build_masked_run({"decoder": "random", "block": 0}).make_sampler()
    with pytest.raises(InputError, match="temperature is -1"):
        build_decoder({"random": {"temperature": -1}})


def test_a_latent_policy_is_refused_before_there_is_a_model() -> None:
    config = build_masked_run({"decoder": "random", "policies": [{"skip_policy": {"every": 2}}]})
    with pytest.raises(
        CapabilityError,
        match=r"SkipPolicy.* decides for latents, but MaskedLoop samples tokens; .*serves tokens",
    ):
        config.make_sampler()


def test_guidance_of_a_configuration() -> None:
    config = build_masked_run({"decoder": "random", "guidance": {"cfg": {"scale": 2}}})
    assert config.make_sampler().loop.guidance == CFG(scale=2.0)


# ------------------------------------------------------------------------ prompts and texts
def test_a_prompt_is_read_as_it_is_spelled(model: WordsModel) -> None:
    assert isinstance(model, TextTokenModel)
    ids, seen, start = model.encode_prompts(["re", "rest.... .n", "r"])
    assert (seen, start) == (None, 0)
    assert [model.spell(row) for row in ids.tolist()] == [
        "re...... ........",
        "rest.... .n......",
        "r....... ........",
    ]
    sampler = MaskedSampler(decoder=RandomDecoder(temperature=0.7), accelerator="cpu")
    done = sampler.sample(model, ids, start=start, seeds=(4, 5, 6)).ids
    given = ids != model.mask_id
    assert torch.equal(done[given], ids[given])
    for row, prompt in enumerate(["re", "rest.... .n", "r"]):  # whatever is sampled beside it
        alone, _, start = model.encode_prompts([prompt])
        assert torch.equal(
            sampler.sample(model, alone, start=start, seed=4 + row).ids[0], done[row]
        )


def test_prompts_follow_the_start_symbol() -> None:
    model = load_permutations_model()
    ids, _, start = model.encode_prompts(["AB", "AC"])
    assert ([model.spell(row)[:4] for row in ids.tolist()], start) == ([":AB.", ":AC."], 1)


@pytest.mark.parametrize(
    ("prompt", "length", "message"),
    [
        ("a!b?", None, r"the prompt 'a!b\?' holds '!\?', but 'words' reads only"),
        ("a" * 17, None, "has 17 symbols, but 'words' has 16"),
        ("a" * 16, None, "leaves nothing to decode; write a dot"),
        ("", 8, "length is 8, but 'words' has 16 symbols"),
    ],
)
def test_prompts_that_do_not_fit(
    prompt: str, length: int | None, message: str, model: WordsModel
) -> None:
    with pytest.raises(InputError, match=message):
        model.encode_prompts([prompt], length)
