"""From a `Sampler`, the command line or a `Fabric` to a job, in one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from erta_framework import Sampler, Samples, Trace
from erta_framework.cli import app
from erta_framework.cli._jobs import merge_fabric
from erta_framework.config import load_config
from erta_framework.errors import CapabilityError, ConfigError, InputError, PolicyError
from erta_framework.jobs import CalibrationRequest, FabricConfig, JobConfig, JobRequest
from erta_framework.testing import AffineFlow
from erta_integrations.fabric import FabricLauncher, build_fabric, sample_job, setup
from erta_integrations.fabric._launch import read_launch, to_precision
from erta_integrations.fabric.jobs import Item, PipelineSource, Store

ONE = FabricConfig(accelerator="cpu", devices=1)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "LT_", "TORCHELASTIC_")) or name in ("WORLD_SIZE", "RANK"):
            monkeypatch.delenv(name)


def test_a_job_gives_what_the_sampler_gives(tmp_path):
    sampler = Sampler(num_steps=4, accelerator="cpu", batch_size=3)
    summary = sampler.sample_job(AffineFlow(), ["a", "b", "c"], tmp_path / "job", seed=5)
    assert (summary.total, summary.done, summary.failed, summary.leader) == (3, 3, (), True)
    assert (summary.network_calls, summary.speedup) == (8.0, 1.0)
    store = Store(tmp_path / "job")
    for index, prompt in enumerate(["a", "b", "c"]):
        alone = sampler.sample(AffineFlow(), [prompt], seed=5 + index).samples[0]
        assert torch.equal(store.load(index)["sample"], alone)
    with pytest.raises(InputError, match="holds a job already"):
        sampler.sample_job(AffineFlow(), ["a", "b", "c"], tmp_path / "job", seed=5)
    with pytest.raises(InputError, match=r"prompts.digest: folder '.*' / run '"):
        sampler.sample_job(AffineFlow(), ["a", "b", "d"], tmp_path / "job", seed=5, resume=True)
    with pytest.raises(InputError, match=r"batch_size: folder 1 / run 2"):
        sampler.sample_job(
            AffineFlow(), ["a"], tmp_path / "job", resume=True, job=JobConfig(batch_size=2)
        )


def test_a_job_with_a_fabric_of_ones_own(tmp_path):
    fabric = build_fabric(ONE)
    fabric.launch()
    request = JobRequest(prompts=["a", "b"], output=tmp_path / "job", quiet=True)
    sampler = Sampler(num_steps=3, accelerator="cpu")
    assert sample_job(fabric, sampler, AffineFlow(), request).complete
    expected = sampler.sample(AffineFlow(), ["a", "b"], seed=0).samples
    assert torch.equal(Store(tmp_path / "job").load(1)["sample"], expected[1])
    with pytest.raises(InputError, match="opens no model"):
        FabricLauncher().sample(JobRequest(prompts=["a"], output=tmp_path / "x", fabric=ONE))


def test_setup_moves_a_model_and_does_not_wrap_it():
    fabric = build_fabric(FabricConfig(accelerator="cpu", devices=1, strategy="ddp"))
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    found = setup(fabric, model)
    assert found is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    flow = AffineFlow()
    assert setup(fabric, flow) is flow


def test_several_devices_need_a_folder():
    sampler = Sampler(devices=2, strategy="ddp", num_nodes=3, accelerator="cpu")
    assert sampler.fabric == FabricConfig(accelerator="cpu", devices=2, strategy="ddp", num_nodes=3)
    with pytest.raises(CapabilityError, match=r"several devices .*use sample_job\(model"):
        sampler.sample(AffineFlow(), ["a"])
    with pytest.raises(PolicyError, match="none of the policies needs calibration"):
        sampler.calibrate(AffineFlow(), ["a"])


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"devices": 0}, ConfigError, "Lightning Fabric refuses .*'devices': 0"),
        ({"strategy": "dpp"}, ConfigError, "invalid strategy name"),
        ({"accelerator": "abacus"}, ConfigError, "invalid accelerator name"),
        ({"strategy": "dp"}, (ConfigError, CapabilityError), "dp"),
        ({"precision": "64-true"}, CapabilityError, "'64-true' is none of a job; use 32-true"),
    ],
)
def test_what_fabric_or_a_job_cannot_do(tmp_path, settings, kind, message):
    fabric = FabricConfig(**{"accelerator": "cpu", **settings})
    request = JobRequest(
        open=lambda *_: pytest.fail("opened"), prompts=["a"], output=tmp_path / "x", fabric=fabric
    )
    with pytest.raises(kind, match=message):
        FabricLauncher().sample(request)


LACKING = [
    ({"cpu"}, "cuda", "cpu"),
    ({"cpu"}, "gpu", "cpu"),
    ({"cpu"}, "mps", "cpu"),
    ({"cpu", "cuda"}, "mps", "cpu, cuda"),
    ({"cpu", "mps"}, "gpu", "cpu, mps"),
]


@pytest.mark.parametrize(("there", "name", "said"), LACKING)
@pytest.mark.parametrize("more", [[], ["fabric.devices=2"], ["accelerator=cpu"]])
def test_an_accelerator_that_is_not_there_is_refused_when_a_configuration_is_loaded(
    monkeypatch, there, name, said, more
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    message = f"fabric.accelerator is '{name}', which this machine does not have; it has {said}. "
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(None, [f"fabric.accelerator={name}", *more])


@pytest.mark.parametrize(("there", "name", "said"), LACKING)
def test_and_when_a_job_is_launched_from_python(tmp_path, monkeypatch, there, name, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    request = JobRequest(
        open=lambda *_: pytest.fail("opened"),
        prompts=["a"],
        output=tmp_path / "x",
        fabric=FabricConfig(accelerator=name, devices=1),
    )
    with pytest.raises(ConfigError, match=f"'{name}', which this machine does not .* {said}"):
        FabricLauncher().sample(request)
    assert not (tmp_path / "x").exists()


def test_one_process_runs_where_the_section_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_config(None, ["fabric.accelerator=gpu"]).accelerator == "cuda"
    assert load_config(None, ["fabric.accelerator=cpu"]).accelerator == "cpu"
    assert load_config(None, ["fabric.accelerator=auto"]).accelerator == "auto"
    named = load_config(None, ["fabric.accelerator=cuda", "accelerator=cpu"])
    assert named.accelerator == "cpu"


def test_a_strategy_that_shares_a_sample_is_refused():
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import FSDPStrategy

    from erta_integrations.fabric._launch import require_whole_samples

    fabric = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(CapabilityError, match="FSDPStrategy shares one model among ranks"):
        require_whole_samples(fabric)
    require_whole_samples(Fabric(accelerator="cpu", devices=1))


def test_precision_is_fabrics(tmp_path):
    fabric = build_fabric(FabricConfig(accelerator="cpu", precision="bf16-mixed"))
    assert to_precision(fabric) == "bf16-mixed"
    assert to_precision(build_fabric(ONE)) == "32"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            {"devices": 4, "num_nodes": 2},
        ),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "4"}, {"devices": 2, "num_nodes": 4}),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, {}),
    ],
)
def test_a_launcher_outside_says_how_many(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_launch() == expected


def test_fabric_run_may_not_be_contradicted(monkeypatch):
    monkeypatch.setenv("LT_CLI_USED", "1")
    monkeypatch.setenv("LT_DEVICES", "1")
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")
    assert build_fabric(FabricConfig()).world_size == 1
    with pytest.raises(ConfigError, match="conflicts with the value"):
        build_fabric(FabricConfig(devices=2))


def test_calibration_of_one_rank_is_that_of_the_sampler():
    from erta_policies.ertacache import ResidualProfiler

    sampler = Sampler(num_steps=3, accelerator="cpu")
    request = CalibrationRequest(
        open=lambda accelerator, precision: (sampler, AffineFlow()),
        prompts=("a", "b"),
        profiler=ResidualProfiler(),
        seed=4,
        fabric=ONE,
    )
    made, leader = FabricLauncher().calibrate(request)
    expected = sampler.calibrate(AffineFlow(), ["a", "b"], seed=4, profiler=ResidualProfiler())
    assert leader
    assert made.digest == expected.digest
    assert made.provenance == expected.provenance


# ----------------------------------------------------------------------------- command line
def test_outer_keys_complete_the_section():
    config = load_config(None, ["accelerator=cpu", "devices=2", "fabric.devices=3"])
    assert merge_fabric(config) == FabricConfig(accelerator="cpu", devices=3)
    assert merge_fabric(load_config(None, ["precision=bf16-mixed"])).precision == "bf16-mixed"
    assert merge_fabric(load_config()) == FabricConfig()


def test_a_file_of_requests_is_a_job(tmp_path, monkeypatch):
    from erta_framework.cli import _jobs as jobs

    monkeypatch.setattr(jobs, "load_model", lambda name: AffineFlow())
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "steps": 2}\n')
    arguments = ["sample", "steps=3", "accelerator=cpu", "--prompts", "p.jsonl", "--no-gifs"]
    done = CliRunner().invoke(app, [*arguments, "-o", "out"])
    assert done.exit_code == 0, done.output
    assert Store("out").facts(1)["trace"]["num_steps"] == 2
    again = CliRunner().invoke(app, [*arguments, "-o", "out", "--resume", "--log-json"])
    assert again.exit_code == 0, again.output
    events = [json.loads(line) for line in again.stdout.splitlines() if line.startswith("{")]
    assert [event["event"] for event in events] == ["progress", "end"]
    assert (events[1]["done"], events[1]["network_calls"]) == (2, 5.0)
    both = CliRunner().invoke(app, [*arguments, "-o", "out", "-p", "three"])
    assert both.exit_code == 2
    assert "got --prompt and --prompts" in both.output
    piped = CliRunner().invoke(app, [*arguments, "-o", "out", "--height", "3"])
    assert piped.exit_code == 2
    assert "--height: only with --pipeline" in piped.output
    text = CliRunner().invoke(app, ["sample", "--prompts", "p.txt", "-o", "out"])
    assert text.exit_code == 2
    assert "there is no file p.txt with prompts" in text.output


def test_one_device_without_requests_is_no_job(tmp_path, monkeypatch):
    from erta_framework.cli import _sample as runs

    monkeypatch.setattr(runs, "load_model", lambda name: AffineFlow())
    monkeypatch.setattr(runs, "sample_job", lambda *_: pytest.fail("a job"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, ["sample", "fabric.devices=1", "steps=2", "-p", "a", "--no-gifs", "-o", "out"]
    )
    assert done.exit_code == 0, done.output
    assert Path("out/samples.safetensors").is_file()


# -------------------------------------------------------------------------------- pipelines
class FakeRun:
    """What `erta_integrations.diffusers.load` gives, as far as a job asks of it."""

    source = "somewhere/tiny"

    def __init__(self) -> None:
        self.pipe = SimpleNamespace(device="cpu")
        self.asked = []

    def sample(self, prompts, policies, *, seed, **options):
        self.asked.append((list(prompts), tuple(policies), seed, options))
        sample = torch.full((1, 2), float(seed))
        return Samples(sample, tuple(prompts), (seed,), (Trace(num_steps=3),), 0.5, ())


def test_a_pipeline_samples_requests_with_their_settings():
    from erta_policies.ertacache import SkipPolicy

    run = FakeRun()
    base = SkipPolicy(every=2)
    source = PipelineSource(run, [base], {"steps": 9, "height": None, "guidance": 2.0})
    assert source.identity()["options"] == {"guidance": 2.0, "steps": 9}
    (made,) = source.sample([Item(0, "a", 5, {"steps": 4, "frames": 3})])
    assert run.asked == [(["a"], (base,), 5, {"steps": 4, "guidance": 2.0, "frames": 3})]
    assert made.tensors["sample"].tolist() == [5.0, 5.0]
    assert made.facts["settings"]["options"] == {"frames": 3, "guidance": 2.0, "steps": 4}
    source.sample([Item(0, "a", 5, {"policies": [{"skip_policy": {"every": 3}}]})])
    assert repr(run.asked[1][1]) == repr((SkipPolicy(every=3),))
    with pytest.raises(ConfigError, match=r"request.height is 'tall'"):
        source.check({"height": "tall"})


# ----------------------------------------------------------------------------------- imports
def test_the_jobs_do_without_lightning_and_the_core_without_both():
    code = (
        "import sys, erta_framework, erta_framework.cli\n"
        "assert 'erta_integrations' not in sys.modules\n"
        "import erta_integrations.fabric.jobs\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('lightning', 'diffusers')))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert said.stdout.strip() == "[]"
