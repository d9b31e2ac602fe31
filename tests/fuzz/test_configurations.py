"""Random configurations: a plan or a `ConfigError` of the family, never code, never a hang."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from erta_framework.budgets import promise
from erta_framework.config import (
    MaskedRunConfig,
    RunConfig,
    build_masked_run,
    build_run,
    load_run,
)
from erta_framework.config._references import Resolver
from erta_framework.errors import ErtaError
from erta_framework.masked import Decoder, open_decoder_catalogue
from erta_framework.plugins import policies
from erta_framework.plugins._own import list_offers
from erta_framework.sampling import open_guidance_catalogue, open_solver_catalogue

RAN: list[object] = []
KEYS = [
    "model", "policies", "solver", "guidance", "steps", "sigmas", "prompts", "prompts_file", "seed",
    "batch_size", "precision", "accelerator", "devices", "seam", "output", "fabric", "job",
    "decoder", "block", "length", "samples",
]  # fmt: skip
OPTIONS = [
    "calls", "profile", "budget", "threshold", "every", "evenly", "steps", "shift", "scale", "rho",
    "train_steps", "beta_start", "beta_end", "skip", "allow", "speedup", "psnr", "seconds", "lease",
    "num_nodes", "strategy", "integrator", "grid", "prediction", "_target_", "__class__", "warmup",
]  # fmt: skip
TEXTS = [
    "", "a", "nan", "inf", "-1", "1e9", "10" * 30, "none", "cfg", "ddim", "flow_euler", "ertacache",
    "skip_policy", "easycache", "os.system", "erta_fuzz_bomb:Bomb", "???", "${steps}", "${output}",
    "${fuzz.bomb:1}", "${oc.env:HOME}", "${oc.create:x}", "${nowhere.x}", "a${seed}b${steps}", "${",
    "\\${steps}", "x\x1b[31m\ny", "\u202e", "[bold]", "<b>", "視頻", "%s{0}", "../etc/passwd", "no",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 5, 17, 50, 1000, 10**6, 10**9, 2**63, -(2**63), 10**40, 0.0, -0.0, 0.5, 1.5, 1e-30,
    1e9, 1e300, math.nan, math.inf, -math.inf, True, False, None,
]  # fmt: skip


@pytest.fixture(autouse=True)
def bombs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A resolver, a module and a variable that must never be touched."""
    RAN.clear()
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    register("fuzz.bomb", lambda *x: RAN.append(x), replace=True)
    monkeypatch.setattr("os.system", RAN.append)
    monkeypatch.setattr(Resolver, "_count", refuse_secrets)
    monkeypatch.setenv("HOME", "erta-secret")
    # nothing is installed meanwhile, and looking takes most of the time
    offers = functools.cache(lambda group: tuple(list_offers(group)))
    monkeypatch.setattr("erta_framework.plugins._registry.list_offers", offers)
    yield
    OmegaConf.clear_resolver("fuzz.bomb")
    assert RAN == []


real_count = Resolver._count


def refuse_secrets(self: Resolver, text: str) -> str:
    assert "erta-secret" not in text
    return real_count(self, text)


CATALOGUES = [
    catalogue(only=())
    for catalogue in (
        policies,
        open_solver_catalogue,
        open_guidance_catalogue,
        open_decoder_catalogue,
    )
]
FIELDS = {
    name: [field.name for field in dataclasses.fields(catalogue.load(name))]
    for catalogue in CATALOGUES
    for name in catalogue.names()
}
NAMES = list(FIELDS)
PART_OF = {
    name: part
    for part, found in zip(["policies", "solver", "guidance", "decoder"], CATALOGUES, strict=True)
    for name in found.names()
}


def make_value(rng: random.Random, depth: int) -> Any:
    """A value of any kind; now and then one that a configuration might really have."""
    kind = rng.random()
    if depth <= 0 or kind < 0.3:
        return rng.choice(NUMBERS if rng.random() < 0.6 else [*TEXTS, rng.choice(NAMES)])
    if kind < 0.5:
        name = rng.choice(NAMES)
        return {name: make_options(rng, depth - 1, FIELDS[name])}
    if kind < 0.65:
        return make_options(rng, depth - 1)
    if kind < 0.9:
        return [make_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return rng.choice([{}, [], {"": 1}, {1: 2}, {None: 1}, {True: [[]]}, [[[[]]]]])


def make_options(rng: random.Random, depth: int, own: Sequence[str] = ()) -> dict[Any, Any]:
    """Options, most of them of the part itself where it has some."""
    keys = [
        rng.choice(own if own and rng.random() < 0.9 else OPTIONS) for _ in range(rng.randrange(4))
    ]
    return {key: make_value(rng, depth) for key in keys}


def make_configuration(rng: random.Random) -> dict[Any, Any]:
    if rng.random() < 0.1:  # one that is good, before it is damaged
        return {"steps": rng.randrange(1, 60)}
    values = {key: make_value(rng, rng.randrange(5)) for key in rng.sample(KEYS, rng.randrange(6))}
    if rng.random() < 0.7:  # one part that is written as it should be, with values of any kind
        name = rng.choice(NAMES)
        spec = {name: make_options(rng, 2, FIELDS[name])}
        values |= {PART_OF[name]: [spec] if PART_OF[name] == "policies" else spec}
    if rng.random() < 0.1:
        values[rng.choice(TEXTS)] = make_value(rng, 2)
    return values


def must_be_plan_or_refusal(make: Callable[[], RunConfig | MaskedRunConfig], shown: object) -> bool:
    """Whether it was a plan; anything but a plan or an error of ours is a failure."""
    try:
        run = make()
        repr(run)
        if isinstance(run, MaskedRunConfig):
            assert isinstance(run.decoder, Decoder)
            run.make_sampler()
            return True
        assert 1 <= run.steps <= 10_000
        if len(run.policies) == 1:
            promise(run.policies, min(run.steps, 20))
    except ErtaError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} for {str(shown)[:2000]}") from error
    else:
        return True
    assert 0 < len(said) < 5000, shown
    assert "\x1b" not in said, shown
    # an accident within the framework, which the configuration would hide behind an error of ours
    assert not re.search(r"\b(Type|Attribute|Index|Key|Recursion|Name|Memory)Error\b", said), (
        said[:1000],
        str(shown)[:2000],
    )
    return False


def try_values(rng: random.Random, count: int) -> int:
    plans = 0
    for _ in range(count):
        values = make_configuration(rng)
        build = build_masked_run if "decoder" in values else build_run
        plans += must_be_plan_or_refusal(
            lambda build=build, values=values: build(values, only=()), values
        )
    return plans


def try_files(rng: random.Random, count: int, folder: Any) -> int:
    plans = 0
    path = folder / "run.yaml"
    for _ in range(count):
        values = make_configuration(rng)
        text = yaml.safe_dump(values, allow_unicode=True)
        if rng.random() < 0.5:
            text = damage(rng, text)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        overrides = [make_override(rng) for _ in range(rng.randrange(3))]
        plans += must_be_plan_or_refusal(
            lambda overrides=overrides: load_run(path, overrides, only=()), (text, overrides)
        )
    return plans


def damage(rng: random.Random, text: str) -> str:
    """A text with parts cut, doubled, or replaced by what means something to YAML."""
    pieces = ["&a ", "*a", "<<: *a\n", "!!python/name:os.system ", "!!binary ", "[", "{", "]", "}"]
    pieces += ["- ", ": ", "\n", "\t", "#", "'", '"', "|\n", ">\n", "---\n", "%", "\x00", "\ud800"]
    for _ in range(rng.randrange(1, 6)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        part = rng.choice(["", text[at:end] * 2, rng.choice(pieces), rng.choice(pieces) * 50])
        text = text[:at] + part + text[min(end, at + rng.randrange(8)) :]
    return text


def make_override(rng: random.Random) -> str:
    key = ".".join(
        str(rng.choice([rng.choice(KEYS), rng.choice(OPTIONS), rng.choice(NAMES), 0, 1, 10**9, ""]))
        for _ in range(rng.randrange(1, 5))
    )
    value = rng.choice([str(rng.choice(NUMBERS)), rng.choice(TEXTS), str(make_value(rng, 2))])
    return rng.choice([f"{key}={value}", f"{key}={damage(rng, value)}", key, f"={value}"])


def test_values_give_a_plan_or_a_refusal(rng, examples):
    count = examples(2000)
    plans = try_values(rng, count)
    assert count < 100 or 0 < plans < count  # some are good, so that more than the door is tried


def test_files_and_overrides_give_a_plan_or_a_refusal(rng, examples, tmp_path):
    count = examples(200)
    plans = try_files(rng, count, tmp_path)
    assert count < 100 or 0 < plans < count


@pytest.mark.slow
def test_many_values_and_files(rng, examples, tmp_path):
    try_values(rng, examples(40_000))
    try_files(rng, examples(10_000), tmp_path)


def test_bytes_that_are_no_text(rng, examples, tmp_path):
    path = tmp_path / "run.yaml"
    for _ in range(examples(100)):
        path.write_bytes(rng.randbytes(rng.randrange(200)))
        must_be_plan_or_refusal(lambda: load_run(path, only=()), path.read_bytes())
