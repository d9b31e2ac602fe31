"""Profiles on a hub: pushed and pulled over HTTP by the hub's client, named by configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from erta_framework import CFG, FlowEuler, Profile, Sampler
from erta_framework.calibration import ProfileReference, open_profile_store
from erta_framework.cli import app
from erta_framework.config import build_policies
from erta_framework.errors import ProfileError, ProfileMismatchError
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.ertacache import ResidualProfiler

STEPS = 6


def sampler(policies=(), steps: int = STEPS) -> Sampler:
    return Sampler(
        policies, solver=FlowEuler(), guidance=CFG(scale=2.0), num_steps=steps, accelerator="cpu"
    )


@pytest.fixture(scope="module")
def profile() -> Profile:
    return sampler().calibrate(GaussianMixtureFlow(), ["a"], profiler=ResidualProfiler())


@pytest.fixture
def pushed(hub, profile: Profile, tmp_path: Path) -> Path:
    path = profile.save(tmp_path / "own.safetensors")
    done = CliRunner().invoke(app, ["profile", "push", str(path), "owner/name"])
    assert done.exit_code == 0, done.output
    return path


def test_a_pushed_profile_is_used_by_its_name(hub, pushed: Path, profile: Profile) -> None:
    held = hub.files["owner/name", "main"]
    assert held["profile.safetensors"] == pushed.read_bytes()
    assert "profile: hf:owner/name" in held["README.md"].decode()
    assert Profile.load("hf:owner/name").digest == profile.digest
    run = {"budget": {"calls": 3}, "profile": "hf:owner/name"}
    samples = sampler(build_policies([{"skip_policy": run}])).sample(GaussianMixtureFlow(), ["b"])
    same = sampler(build_policies([{"skip_policy": {**run, "profile": str(pushed)}}]))
    assert torch.equal(samples.samples, same.sample(GaussianMixtureFlow(), ["b"]).samples)
    assert samples.traces[0].network_calls == 2 * 3


def test_commands_take_its_name(hub, pushed: Path) -> None:
    named = ("plan", "--profile", "hf:owner/name", "--policy", "skip_policy")
    done = CliRunner().invoke(app, [*named, "--calls", "3", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)[0]["calls"] == 3
    shown = CliRunner().invoke(app, ["profile", "show", "hf:owner/name", "--json"])
    assert json.loads(shown.output)["digest"] == Profile.load(pushed).digest
    asked = CliRunner().invoke(app, [*named, "--measure"])
    assert asked.exit_code == 2
    assert "which is no file; give --output FILE" in " ".join(asked.output.split())


def test_its_fingerprint_is_checked_as_that_of_a_file(hub, pushed: Path) -> None:
    named = {"budget": {"calls": 3}, "profile": "hf:owner/name", "allow": ["num_steps"]}
    policies = build_policies([{"skip_policy": named}])
    with pytest.raises(ProfileMismatchError, match="sigma_grid"):
        sampler(policies, STEPS + 1).sample(GaussianMixtureFlow(), ["b"])


def test_a_pinned_revision_stays_and_is_fetched_once(hub, pushed: Path, profile: Profile) -> None:
    commit = next(each for name, each in hub.files if each != "main")
    pinned = f"hf:owner/name@{commit}"
    assert Profile.load(pinned).digest == profile.digest
    newer = Profile.merge([profile, profile])
    newer_file = newer.save(pushed.with_name("newer.safetensors"))
    hub.commit("owner/name", {"profile.safetensors": newer_file.read_bytes()})
    asked = len(hub.asked)
    assert Profile.load(pinned).digest == profile.digest
    assert len(hub.asked) == asked, "a pinned profile was asked for again"
    assert Profile.load("hf:owner/name").digest == newer.digest
    assert Profile.load("hf:owner/name@main").digest == newer.digest


def test_a_pulled_profile_is_the_same_file(hub, pushed: Path, monkeypatch) -> None:
    monkeypatch.chdir(pushed.parent)
    done = CliRunner().invoke(app, ["profile", "pull", "owner/name"])
    assert done.exit_code == 0, done.output
    assert Path("name.safetensors").read_bytes() == pushed.read_bytes()
    again = CliRunner().invoke(app, ["profile", "pull", "owner/name"])
    assert again.exit_code == 2
    assert "--force" in again.output


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("hf:owner/other", "no such repository; check the name"),
        ("hf:owner/name@v9", "has no revision 'v9'"),
        ("hf:owner/name/other.safetensors", "name the file as hf:owner/name/FILE"),
    ],
)
def test_what_is_not_there_is_named(hub, pushed: Path, reference: str, said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        Profile.load(reference)


def test_a_file_that_is_no_profile_is_refused(hub, monkeypatch) -> None:
    hub.commit("owner/name", {"profile.safetensors": b"\x80\x04pickled"})
    with pytest.raises(ProfileError, match="not a readable safetensors file"):
        Profile.load("hf:owner/name")
    hub.commit("owner/name", {"profile.safetensors": b"x" * 100})
    monkeypatch.setattr("erta_integrations.hub._store.MOST_BYTES", 99)
    with pytest.raises(ProfileError, match="has 100 bytes, at most 99"):
        Profile.load("hf:owner/name")
    assert [line for line in hub.asked if line.startswith("GET")] == [hub.asked[2]], "fetched twice"


def test_a_push_without_a_token_says_so(hub, pushed: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    done = CliRunner().invoke(app, ["profile", "push", str(pushed), "owner/name"])
    assert done.exit_code == 1
    assert "the token may do this" in " ".join(done.output.split())


def test_a_hub_that_is_not_there_is_named(hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ProfileError, match=r"cannot push hf:owner.*ConnectError.*HF_ENDPOINT"):
        open_profile_store().publish(ProfileReference("hf", "owner/name"), {"a": b"b"})
