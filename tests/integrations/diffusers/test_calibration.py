"""Calibrating through an unmodified pipeline, and using the profile on it."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import nn

import erta_framework as erta
from erta_framework import Profile, Samples
from erta_framework.budgets import MeasuredFront, ReplaySetting, measure
from erta_framework.config import build_policies
from erta_framework.errors import InputError, PolicyError, ProfileError, ProfileMismatchError
from erta_integrations.diffusers.network import find_channel_dim
from erta_integrations.diffusers.pipeline._fingerprint import describe_guidance, hash_config
from tiny_pipelines import FAMILIES, counted, unipc

STEPS, CALLS = 8, 4
LAYOUTS = {"wan-euler": (1, 16), "flux": (2, 4), "cogvideox": (2, 4)}
"""Dimension of the channels, and how many there are."""


@functools.cache
def calibrated(name: str) -> tuple[Any, Profile]:
    """A pipeline, and its profile over two requests."""
    family = FAMILIES[name]
    pipe = family.build()
    with erta.attach(pipe, "residual_profiler") as run:
        for seed in (0, 1):
            family.run(pipe, steps=STEPS, seed=seed)
    return pipe, run.profile()


def saved(name: str, folder: Path) -> tuple[Any, str]:
    pipe, profile = calibrated(name)
    return pipe, str(profile.save(folder / "profile.safetensors"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_profile_of_a_pipeline_serves_it(name: str, tmp_path: Path) -> None:
    family, (pipe, path) = FAMILIES[name], saved(name, tmp_path)
    full = family.run(pipe, steps=STEPS)
    with (
        erta.attach(pipe, "ertacache", profile=path, calls=CALLS) as run,
        counted(pipe, family) as c,
    ):
        first = family.run(pipe, steps=STEPS)
        assert len(c) == CALLS * family.calls
        assert torch.equal(family.run(pipe, steps=STEPS), first)
    assert [trace.network_calls for trace in run.traces] == [CALLS * family.calls] * 2
    assert len(run.traces[0].computed_steps) == CALLS
    assert {0, STEPS - 1} <= set(run.traces[0].computed_steps)
    assert not torch.equal(first, full)
    assert first.isfinite().all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_calibrating_leaves_the_samples_alone(name: str) -> None:
    family, (pipe, _) = FAMILIES[name], calibrated(name)
    full = family.run(pipe, steps=STEPS)
    with erta.attach(pipe, "residual_profiler") as run, counted(pipe, family) as made:
        assert torch.equal(family.run(pipe, steps=STEPS), full)
    assert len(made) == STEPS * family.calls
    assert len(run.emitted) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_statistics_and_corrections_are_those_of_channels(name: str, tmp_path: Path) -> None:
    family, (pipe, path) = FAMILIES[name], saved(name, tmp_path)
    dim, channels = LAYOUTS[name]
    profile = Profile.load(path)
    assert profile.statistics["e"].shape[-1] == channels
    sizes = [int(size) for size in profile.fingerprint["latent_shape"].split("x")]
    assert sizes[dim - 1] == channels
    linearizer = {"error_linearizer": {"granularity": "channel"}}
    policy = {"ertacache": {"profile": path, "calls": CALLS, "linearizer": linearizer}}
    with erta.attach(pipe, [policy]), counted(pipe, family) as made:
        assert family.run(pipe, steps=STEPS).isfinite().all()
    assert len(made) == CALLS * family.calls


@pytest.mark.parametrize(
    ("config", "shape", "dim"),
    [
        ({"in_channels": 64, "out_channels": None}, (1, 4096, 64), 2),
        ({"in_channels": 64, "out_channels": 16}, (1, 64, 64), 2),
        ({"in_channels": 16, "out_channels": 16}, (2, 16, 21, 60, 90), 1),
        ({"in_channels": 16, "out_channels": 16}, (2, 13, 16, 60, 90), 2),
        ({"in_channels": 32, "out_channels": 16}, (2, 16, 32, 60, 90), 2),
        ({"in_channels": 4, "out_channels": 4}, (2, 4, 4, 4), 1),
        ({"in_channels": 16}, (1, 5, 8, 8, 16), 4),
        ({}, (1, 9, 7), 2),
        ({}, (1, 9, 7, 7), 1),
    ],
)
def test_the_channels_are_found_by_their_number(
    config: dict[str, Any], shape: tuple[int, ...], dim: int
) -> None:
    network = nn.Identity()
    network.config = SimpleNamespace(get=config.get)  # type: ignore[assignment]
    assert find_channel_dim(network, shape) == dim


# ------------------------------------------------------------------------------ refusals
def changed_steps(pipe: Any) -> dict[str, Any]:
    return {"steps": STEPS + 2}


def changed_guidance(pipe: Any) -> dict[str, Any]:
    return {"guidance_scale": 2.0}


def changed_scheduler(pipe: Any) -> dict[str, Any]:
    pipe.scheduler = unipc()
    return {}


def changed_network(pipe: Any) -> dict[str, Any]:
    pipe.transformer.register_to_config(freq_dim=64)
    return {}


def changed_size(pipe: Any) -> dict[str, Any]:
    return {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (changed_steps, {"num_steps", "sigma_grid"}),
        (changed_guidance, {"guidance"}),
        (changed_scheduler, {"solver", "sigma_grid"}),
        (changed_network, {"model.config"}),
        (changed_size, {"latent_shape"}),
    ],
)
def test_a_profile_of_another_run_is_refused(change: Any, fields: set[str], tmp_path: Path) -> None:
    family, (_, path) = FAMILIES["wan-euler"], saved("wan-euler", tmp_path)
    pipe = family.build()
    request = {"steps": STEPS, **change(pipe)}
    with (
        erta.attach(pipe, "ertacache", profile=path, calls=CALLS),
        pytest.raises(ProfileMismatchError) as caught,
    ):
        family.run(pipe, **request)
    lines = str(caught.value).splitlines()
    named = {line.split(":")[0].strip() for line in lines if line.startswith("  ")}
    assert named == fields


def test_a_difference_can_be_accepted_by_name(tmp_path: Path) -> None:
    family, (pipe, path) = FAMILIES["wan-euler"], saved("wan-euler", tmp_path)
    options = {"profile": path, "calls": CALLS, "allow": ("guidance",)}
    with erta.attach(pipe, "ertacache", **options) as run:
        family.run(pipe, steps=STEPS, guidance_scale=2.0)
    assert run.traces[0].network_calls == CALLS * family.calls


def test_a_saved_configuration_is_the_same_network() -> None:
    assert hash_config({"patch_size": (1, 2, 2)}) == hash_config({"patch_size": [1, 2, 2]})
    assert hash_config({"patch_size": (1, 2, 2)}) != hash_config({"patch_size": (1, 2, 4)})


def test_nothing_emitted_is_nothing_to_save() -> None:
    family = FAMILIES["flux"]
    pipe, _ = calibrated("flux")
    with erta.attach(pipe, "skip_policy", every=2) as run:
        family.run(pipe, steps=STEPS)
    with pytest.raises(ProfileError, match="nothing to merge"):
        run.profile()


# ---------------------------------------------------------------------------------- plot
def test_a_request_is_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    family = FAMILIES["flux"]
    pipe, _ = calibrated("flux")
    shown = []
    from erta_framework import report as media

    name, real = "write_schedule_plot", media.write_schedule_plot
    monkeypatch.setattr(media, name, lambda p, path: shown.append(p) or real(p, path))
    with erta.attach(pipe, "skip_policy", steps=(0, 2)) as run:
        with pytest.raises(InputError, match="no request -1 to plot, 0 were made"):
            run.plot(tmp_path / "none.png")
        family.run(pipe, steps=4)
        family.run(pipe, steps=3)
    assert run.plot(tmp_path / "last.png") == tmp_path / "last.png"
    assert run.plot(tmp_path / "first.svg", request=0).stat().st_size > 1000
    assert [list(plot.computed) for plot in shown] == [
        [True, False, True],
        [True, False, True, False],
    ]
    assert (tmp_path / "last.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("budget", [{"calls": CALLS}, {"speedup": 2.0}])
@pytest.mark.parametrize("policy", ["ertacache", "planned_schedule"])
def test_a_budget_is_kept_and_said_before_the_first_request(
    policy: str, budget: dict[str, float], tmp_path: Path
) -> None:
    family, (pipe, path) = FAMILIES["wan-euler"], saved("wan-euler", tmp_path)
    with (
        erta.attach(pipe, policy, profile=path, budget=budget) as run,
        counted(pipe, family) as made,
    ):
        said = run.summary()
        assert said.startswith("no request yet; every request computes 4 of 8 steps")
        for seed in (0, 1):
            family.run(pipe, steps=STEPS, seed=seed)
    assert len(made) == 2 * CALLS * family.calls
    assert [len(trace.computed_steps) for trace in run.traces] == [CALLS] * 2
    with pytest.raises(PolicyError, match="a budget got calls and psnr"):
        erta.attach(pipe, policy, profile=path, budget={"calls": 4, "psnr": 30.0})


def test_plans_are_measured_through_a_pipeline(tmp_path: Path) -> None:
    family, (pipe, path) = FAMILIES["wan-euler"], saved("wan-euler", tmp_path)
    profile = Profile.load(path)
    seen: list[int] = []

    class Through:
        """A pipeline with policies, as replays want it."""

        facts: ClassVar[dict[str, str]] = {}

        def __init__(self, policies: Any) -> None:
            self.policies = list(policies)

        def sample(self, model: Any, prompts: Any, *, seed: int = 0) -> Samples:
            with erta.attach(pipe, self.policies) as run:
                outputs = [family.run(pipe, steps=STEPS, seed=seed + k) for k in range(2)]
            seen.append(sum(len(trace.computed_steps) for trace in run.traces))
            names, seeds = tuple(prompts), (seed, seed + 1)
            samples = torch.cat(outputs).float()
            return Samples(samples, names, seeds, tuple(run.traces), 1.0, ())

        calibrate = None

    (planned,) = build_policies([{"planned_schedule": {"budget": {"calls": CALLS}}}])
    setting = ReplaySetting(
        sampler=cast(Any, Through), model=cast(Any, None), prompts=("a", "b"), batch=1, device="cpu"
    )
    policies = [replace(planned, profile=profile)]
    found = measure(setting, policies, STEPS, [3, 5], refine=2)
    assert found.spent == sum(seen) // 2
    front = MeasuredFront.of(
        Profile.load(found.added_to(profile).save(tmp_path / "m.st")), found.unit
    )
    assert front == found
    assert found.psnr[0] < found.psnr[1]


@pytest.mark.parametrize("scale", [5, 5.0])
def test_a_whole_scale_is_the_same_however_it_is_written(scale: float) -> None:
    """A profile that the command line made, with 5.0, serves a script that says 5."""
    pipe = SimpleNamespace(_guidance_scale=scale, _true_cfg_scale=None)
    assert describe_guidance(pipe) == "guidance_scale=5.0"
    assert describe_guidance(SimpleNamespace()) == "unknown"
