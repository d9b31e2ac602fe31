"""Who runs a job: `launcher=ray` from the configuration or a `Sampler`, without a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from erta_framework import Sampler
from erta_framework.cli import app
from erta_framework.config import load_config
from erta_framework.errors import CapabilityError, ConfigError, InputError, RegistryError
from erta_framework.jobs import FabricConfig, JobRequest, Summary, load_launcher
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.testing import AffineFlow

DONE = Summary(1, 1, (), 2.0, 1.0, 0.1, True)


class Recorded:
    """A launcher that keeps what it is asked for."""

    def __init__(self) -> None:
        self.names, self.requests = [], []

    def load(self, name="fabric"):
        self.names.append(name)
        return self

    def sample(self, request):
        self.requests.append(request)
        return DONE

    def calibrate(self, request):
        self.requests.append(request)
        return "a profile", True


@pytest.fixture
def launched(monkeypatch):
    recorded = Recorded()
    from erta_framework.cli import _jobs
    from erta_framework.sampling import _sampler

    for module in (_jobs, _sampler):
        monkeypatch.setattr(module, "load_launcher", recorded.load)
    return recorded


def test_a_configuration_names_a_launcher_and_makes_a_job(launched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["sample", "launcher=ray", "fabric.devices=3", "fabric.accelerator=cuda", "-p", "a"]
    done = CliRunner().invoke(app, [*words, "--no-gifs", "-o", "out"])
    assert done.exit_code == 0, done.output
    assert launched.names == ["ray"]
    (request,) = launched.requests
    assert request.fabric == FabricConfig(devices=3, accelerator="cuda")
    assert CliRunner().invoke(app, ["sample", "launcher=ray", "-p", "a", "-o", "x"]).exit_code == 0
    assert launched.names == ["ray", "ray"]


def test_a_launcher_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["sample", "launcher=rai", "-p", "a", "-o", "out"])
    assert done.exit_code == 1
    assert "no installed distribution provides 'rai' in erta_framework.launchers" in done.output
    assert "ray" in done.output.split("launchers")[1]
    with pytest.raises(RegistryError, match=r"os:system"):
        load_launcher("os:system")
    assert not Path("out").exists()


def test_where_ray_is_missing_the_extra_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("erta_integrations.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "erta-framework\[ray\]"'):
        load_launcher("ray")


def test_a_sampler_names_a_launcher(launched, tmp_path):
    sampler = Sampler(num_steps=2, devices=2, launcher="ray", accelerator="cuda")
    assert sampler.sample_job(AffineFlow(), ["a"], tmp_path / "job") == DONE
    assert sampler.calibrate(AffineFlow(), ["a"], profiler=make_profiler()) == "a profile"
    assert launched.names == ["ray", "ray"]
    opened, _ = launched.requests[0].open("cpu", "32")
    assert (opened.launcher, opened.device.type) == ("fabric", "cpu")
    with pytest.raises(CapabilityError, match=r"launcher 'ray'\).*and launcher='fabric'"):
        sampler.sample(AffineFlow(), ["a"])
    assert Sampler(num_steps=2, launcher="ray")._is_launched


def make_profiler():
    from erta_policies.ertacache import ResidualProfiler

    return ResidualProfiler()


def test_the_accelerator_of_a_cluster_need_not_be_on_this_machine(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load_config(None, ["launcher=ray", "fabric.accelerator=cuda"])
    assert (config.launcher, config.accelerator) == ("ray", "auto")


# ---------------------------------------------------------------------------------- clusters
@pytest.fixture
def fake_ray(monkeypatch):
    """Ray's functions of the cluster, without one."""
    from erta_integrations.ray import _launch

    said = []
    fake = SimpleNamespace(
        is_initialized=lambda: "init" in said and "shutdown" not in said,
        init=lambda **settings: said.append("init"),
        shutdown=lambda: said.append("shutdown"),
    )
    monkeypatch.setattr(_launch, "ray", fake)
    return said, fake


def test_a_ray_that_was_there_stays(fake_ray):
    from erta_integrations.ray._launch import connect

    said, fake = fake_ray
    with connect():
        assert said == ["init"]
        with connect():
            pass
        assert said == ["init"]
    assert said == ["init", "shutdown"]
    said.clear()
    fake.is_initialized = lambda: True
    with connect():
        pass
    assert said == []


def test_a_request_that_cannot_run_starts_no_cluster(fake_ray, tmp_path):
    from erta_integrations.ray import RayLauncher

    with pytest.raises(InputError, match="opens no model"):
        RayLauncher().sample(JobRequest(prompts=["a"], output=tmp_path))
    two = JobRequest(open=print, prompts=["a"], output=tmp_path, fabric=FabricConfig(num_nodes=2))
    with pytest.raises(ConfigError, match=r"fabric\.num_nodes is 2"):
        RayLauncher().sample(two)
    assert fake_ray[0] == []
