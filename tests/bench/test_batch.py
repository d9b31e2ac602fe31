import json

import pytest
import torch
from typer.testing import CliRunner

from erta_bench.batch import BatchSetting, compare_modes
from erta_bench.batch._modes import (
    ALONE,
    MEAN,
    PER_SAMPLE,
    SAFE,
    Batch,
    choose_mixed_batch,
    run_mode,
    sample_batch,
)
from erta_bench.cli import app
from erta_bench.setting import _models
from erta_framework import CFG, NoGuidance, Sampler
from erta_framework.errors import InputError
from erta_framework.metrics import psnr
from erta_framework.plugins import Engine
from erta_framework.sampling import solve
from erta_framework.testing import GaussianMixtureFlow

STEPS, TAU = 20, 0.1
PROMPTS = ("a b", "c d", "e f", "g", "h i")


def setting(**changes) -> BatchSetting:
    toy = GaussianMixtureFlow((3, 2, 4, 4))
    return BatchSetting(
        **{"model": toy, "steps": STEPS, "options": {"warmup": 3}, "substeps": 2, **changes}
    )


@pytest.fixture(scope="module")
def bench():
    return compare_modes(setting(), PROMPTS, thresholds=[TAU], command="x")


def row(bench, name, batch="as they come"):
    (found,) = [r for r in bench.rows if (r["name"], r["batch"]) == (name, batch)]
    return found


def numbers(found):
    return [float(value) for value in found["calls_of_samples"].split()]


def test_rows(bench, tmp_path):
    rows = json.loads(bench.write(tmp_path / "batch.json").read_text())["rows"]
    names = ["full", PER_SAMPLE, SAFE, MEAN, ALONE]
    assert [r["name"] for r in rows] == names * 2
    assert [r["batch"] for r in rows] == ["as they come"] * 5 + ["easy and hard"] * 5
    for found in rows:
        assert found["prompts"] == len(PROMPTS) == len(numbers(found))
        assert found["processor_seconds"] > 0 < found["seconds"]
        assert found["speedup"] > 0 < found["processor_speedup"]
        assert found["network_samples"] == pytest.approx(2 * sum(numbers(found)))
    full = row(bench, "full")
    assert (full["network_calls"], full["calls_mean"]) == (2 * STEPS, STEPS)
    assert full["samples_per_second"] == pytest.approx(len(PROMPTS) / full["seconds"])


def test_quality_is_measured_to_the_exact_solution_of_the_same_noise(bench):
    for batch in ("as they come", "easy and hard"):
        spelled = bench.settings[f"prompts.{batch}"], bench.settings[f"seeds.{batch}"]
        names, seeds = spelled[0].split("; "), [int(seed) for seed in spelled[1].split()]
        sampler = Sampler(guidance=CFG(scale=3.0), num_steps=STEPS, batch_size=len(names))
        full = sampler.sample(setting().model, names, seeds=seeds).samples
        exact = [
            solve(sampler, setting().model, [name], seed=seed, substeps=2).samples
            for name, seed in zip(names, seeds, strict=True)
        ]
        found = psnr(full, torch.cat(exact))
        assert row(bench, "full", batch)["psnr_fine_mean"] == pytest.approx(found.mean().item())
        assert row(bench, "full", batch)["psnr_fine_worst"] == pytest.approx(found.min().item())
    assert bench.settings["solution_substeps"] == 2


@pytest.mark.parametrize("batch", ["as they come", "easy and hard"])
def test_in_a_batch_every_sample_takes_the_calls_that_it_takes_alone(bench, batch):
    together, alone = row(bench, PER_SAMPLE, batch), row(bench, ALONE, batch)
    assert together["calls_of_samples"] == alone["calls_of_samples"]
    assert together["same_calls_as_alone"] == len(PROMPTS)
    assert together["difference_to_alone"] == 0.0  # the toy does not see other rows
    assert together["network_samples"] == alone["network_samples"]
    assert together["network_calls"] < alone["network_calls"] == alone["network_samples"]
    assert together["calls_min"] < together["calls_max"]


def test_the_safe_maximum_computes_whenever_one_sample_must(bench):
    safe, mean = row(bench, SAFE), row(bench, MEAN)
    for found in (safe, mean):
        assert found["calls_min"] == found["calls_max"]
        assert found["network_samples"] == len(PROMPTS) * found["network_calls"]
    assert safe["calls_max"] >= row(bench, ALONE)["calls_max"]
    assert safe["psnr_min"] > row(bench, PER_SAMPLE)["psnr_min"]


def test_quality_is_measured_against_the_full_run(bench):
    given = Batch("x", PROMPTS, tuple(range(len(PROMPTS))))
    shared = setting()
    full = sample_batch(shared, Engine([]), given)
    run = run_mode(shared, MEAN, TAU, given)
    quality = psnr(run.samples, full.samples)
    alone = run_mode(shared, ALONE, TAU, given)
    hard = sorted(range(len(PROMPTS)), key=lambda k: (alone.calls[k], k))[-2:]
    found = row(bench, MEAN)
    assert found["psnr_mean"] == quality.mean().item()
    assert found["psnr_min"] == quality.min().item()
    assert found["psnr_hard"] == quality[hard].mean().item()
    assert found["difference_to_alone"] == (run.samples - alone.samples).abs().max().item()
    assert found["same_calls_as_alone"] < len(PROMPTS)


def test_the_mixed_batch_holds_the_easiest_and_the_hardest_of_the_pool():
    shared = setting(guidance=NoGuidance())
    given = Batch("x", PROMPTS, tuple(range(7, 12)))
    chosen = choose_mixed_batch(shared, given, TAU)
    pool = [*PROMPTS, "a", "b", "c", "d", "e", "f", "h", "i"]  # "g" is a prompt already
    assert len(chosen.prompts) == len(PROMPTS) == len(set(chosen.prompts))
    places = [pool.index(prompt) for prompt in chosen.prompts]
    assert [seed - 7 for seed in chosen.seeds] == places
    everything = Batch("pool", tuple(pool), tuple(range(7, 7 + len(pool))))
    single = [everything.select([place]) for place in range(len(pool))]
    calls = [run_mode(shared, ALONE, TAU, batch).calls[0] for batch in single]
    taken = [calls[pool.index(prompt)] for prompt in chosen.prompts]
    assert taken == [*sorted(calls)[:3], *sorted(calls)[-2:]]


def test_a_sample_keeps_its_noise_wherever_it_is_sampled():
    given = Batch("x", PROMPTS, tuple(range(5)))
    full = sample_batch(setting(), Engine([]), given).samples
    part = sample_batch(setting(), Engine([]), given.select([3, 1])).samples
    assert torch.equal(part, full[[3, 1]])


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="1 prompts and 2 thresholds"):
        compare_modes(setting(), ["a"])
    with pytest.raises(InputError, match="0 thresholds"):
        compare_modes(setting(), ["a", "b"], thresholds=[])


def test_command(tmp_path, monkeypatch, seeming_gpu):
    class Models:
        def load(self, name):
            toy = GaussianMixtureFlow((3, 2, 4, 4))
            toy.demo_prompts = lambda: (["z"], list(PROMPTS))
            return lambda: toy

    monkeypatch.setattr(_models, "models", Models)
    path = tmp_path / "batch.json"
    options = ["batch", "--prompts", "3", "--threshold", "0.2", "--steps", "14", "--json", path]
    options += ["--device", "cpu", "--substeps", "2"]
    result = CliRunner().invoke(app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    record = json.loads(path.read_text())
    assert record["command"] == (
        "erta bench batch --model shapes-wan --prompts 3 --threshold 0.2 --steps 14 "
        "--substeps 2 --seed 0 --device cpu"
    )
    assert {r["threshold"] for r in record["rows"]} == {None, 0.2}
    assert record["settings"]["prompts.as they come"] == "a b; c d; e f"
