"""`erta sample` and `erta explain` of configurations that decode tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from erta_framework.masked import MaskedSampler, RandomDecoder
from erta_integrations.words import load_words_model
from erta_policies.dkvcache import DKVCacheDecode

WORDS = """
model: words
policies: [{dkvcache: {delay: 1, refresh: 4}}]
decoder: {random: {temperature: 0.7}}
prompts: [re, ""]
samples: 2
seed: 5
batch_size: 3
accelerator: cpu
"""


def read_texts(folder: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(folder, "texts.jsonl").read_text().splitlines()]


def test_sample_writes_the_texts_that_the_sampler_gives(erta):
    Path("words.yaml").write_text(WORDS)
    done = erta("sample", "words.yaml", "-o", "out")
    assert done.exit_code == 0, done.output
    model = load_words_model()
    sampler = MaskedSampler(
        [DKVCacheDecode(delay=1, refresh=4)],
        decoder=RandomDecoder(temperature=0.7),
        accelerator="cpu",
        batch_size=3,
    )
    ids, _, start = model.encode_prompts(["re", "re", "", ""])
    result = sampler.sample(model, ids, start=start, seed=5)
    assert read_texts("out") == [
        {"prompt": prompt, "seed": seed, "text": model.spell(row)}
        for prompt, seed, row in zip(
            ["re", "re", "", ""], range(5, 9), result.ids.tolist(), strict=True
        )
    ]
    rows = sum(trace.token_rows for trace in result.traces)
    total = sum(trace.token_total for trace in result.traces)
    assert rows < total
    assert f"{rows:,} of {total:,}" in done.output
    lines = Path("out/trace.jsonl").read_text().splitlines()
    steps = [line for line in lines if json.loads(line)["event"] == "step"]
    assert len(steps) == sum(len(trace.steps) for trace in result.traces)


def test_without_a_file_and_with_prompts_of_the_command(erta):
    Path("prompts.txt").write_text("ab\n\ncd\n")
    for more in (["-p", "ab", "-p", "cd"], ["--prompts", "prompts.txt"]):
        done = erta("sample", "model=words", "decoder=left_to_right", "output=here", *more)
        assert done.exit_code == 0, done.output
        assert [line["prompt"] for line in read_texts("here")] == ["ab", "cd"]
        assert [str(line["text"])[:2] for line in read_texts("here")] == ["ab", "cd"]


def test_explain_shows_what_decodes(erta):
    Path("words.yaml").write_text(WORDS)
    done = erta("explain", "words.yaml", "block=8")
    assert done.exit_code == 0, done.output
    for part in ("model     words", "RandomDecoder", "block=8", "DKVCacheDecode", "NoGuidance"):
        assert part in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=words"], "the model 'words' decodes tokens, but the configuration has no decoder"),
        (["model=toy-video", "decoder=random"], "the model 'toy-video' samples latents, but"),
        (["model=not-a-model", "decoder=random"], "lacks something of"),
        (
            ["model=words", "decoder=random", "policies=[{skip_policy: {every: 2}}]"],
            "decides for latents, but MaskedLoop samples tokens; choose a policy",
        ),
        (
            ["model=toy-video", "policies=[dkvcache]", "-p", "x"],
            "decides for tokens, but FlowEuler samples latents; choose a policy that serves "
            "latents, or a driver for tokens",
        ),
        (["decoder=random", "--resume", "--height", "8"], "--height, --resume: no effect"),
        (["decoder=random", "--prompts", "many.jsonl"], "--prompts many.jsonl: no effect"),
        (["decoder=random", "--seam", "trunk"], "--seam trunk has no effect"),
        (
            ["decoder=random", "guidance=cfg"],
            "no prompt of the model 'words' stands before",
        ),
        (["decoder=random", "length=4"], "length is 4, but 'words' has 16 symbols"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(erta, arguments, message):
    done = erta("sample", *arguments, "-o", "out")
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["plan", "calibrate"])
def test_commands_for_latents_refuse_tokens(erta, command):
    done = erta(command, "decoder=random")
    assert done.exit_code == 2
    assert "decoder is 'random': such a configuration decodes tokens" in " ".join(
        done.output.split()
    )
