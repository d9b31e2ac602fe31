"""LoRA adapters that come, change and go while a pipeline is attached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

pytest.importorskip("diffusers")

import erta_framework as erta
from erta_framework import Call, Compute, Policy, hookimpl
from erta_framework.errors import ProfileMismatchError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.pipeline._fingerprint import describe_adapters
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted

EVERY = SkipPolicy(every=1)
SOME = SkipPolicy(steps=(0, 2, 5))
WAN = FAMILIES["wan-euler"]
TARGETS = ["to_q", "to_v"]


def network_of(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or pipe.unet


def adapter(pipe: Any, name: str = "style", seed: int = 0) -> None:
    """Random low-rank weights on the attention of the pipeline's network."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network_of(pipe).add_adapter(config, name)
    with torch.no_grad():
        for key, value in network_of(pipe).named_parameters():
            if f"lora_B.{name}" in key or f"lora_A.{name}" in key:
                value.mul_(3.0)


def scaled(pipe: Any, weight: float) -> None:
    pipe.set_adapters(["style"], [weight])


def removed(pipe: Any) -> None:
    network_of(pipe).unload_lora()


STAGES: dict[str, Callable[[Any], None]] = {
    "added": adapter,
    "scaled": lambda pipe: scaled(pipe, 0.4),
    "disabled": lambda pipe: network_of(pipe).disable_lora(),
    "fused": lambda pipe: network_of(pipe).fuse_lora(),
    "unfused": lambda pipe: network_of(pipe).unfuse_lora(),
    "removed": removed,
}


@pytest.mark.parametrize(
    ("name", "seam"),
    [
        ("wan-euler", "latent"),
        ("flux", "trunk"),
        pytest.param("sdxl", "latent", marks=pytest.mark.slow),
    ],
)
def test_adapters_change_between_requests_of_one_attachment(name: str, seam: str) -> None:
    """Nothing skipped equals the plain pipeline; skipping equals an attachment of its own."""
    family = FAMILIES[name]
    full, some, twin = family.build(), family.build(), family.build()
    samples: list[Tensor] = []
    with attach(full, [EVERY], seam=seam), attach(some, [SOME], seam=seam) as run:
        for label in ("plain", "added", "scaled", "fused", "unfused", "removed"):
            for pipe in (full, some, twin):
                if label in STAGES:
                    STAGES[label](pipe)
            plain = family.run(twin)
            assert torch.equal(family.run(full), plain), label
            with attach(twin, [SOME], seam=seam):
                fresh = family.run(twin)
            assert torch.equal(family.run(some), fresh), label
            assert not torch.equal(fresh, plain), label
            samples.append(plain)
    assert {trace.network_calls for trace in run.traces} == {3 * family.calls}
    for place, one in enumerate(samples[:3]):
        assert not any(torch.equal(one, other) for other in samples[place + 1 :])


def test_weights_from_a_file_are_loaded_and_unloaded(tmp_path: Path) -> None:
    source, pipe = WAN.build(), WAN.build()
    adapter(source)
    layers = get_peft_model_state_dict(source.transformer, adapter_name="style")
    source.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    with attach(source, [SOME]):
        expected = WAN.run(source)
    with attach(pipe, [SOME]):
        before = WAN.run(pipe)
        pipe.load_lora_weights(tmp_path, adapter_name="style")
        assert torch.equal(WAN.run(pipe), expected)
        pipe.unload_lora_weights()
        assert torch.equal(WAN.run(pipe), before)
    assert not torch.equal(before, expected)
    assert "forward" not in vars(pipe.transformer)


# ----------------------------------------------------------- changed within a request
def at_step(place: int, change: Callable[[Any], None]) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == place:
            change(pipe)
        return {}

    return callback


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("stage", ["added", "scaled", "disabled", "fused", "removed"])
def test_a_change_within_a_request_drops_its_history(stage: str, seam: str) -> None:
    """What follows is computed with the new weights, and never from a residual of the old."""
    change, pipe = STAGES[stage], WAN.build()
    policy = SkipPolicy(steps=(0, 5))
    if stage != "added":
        adapter(pipe)
    with attach(pipe, [policy], seam=seam) as run:
        WAN.run(pipe, callback_on_step_end=at_step(2, change))
    calls = [(c.index, c.model, c.computed) for c in run.traces[0].calls() if c.branch == "cond"]
    assert calls == [
        (0, "transformer", True),
        (1, "transformer", False),
        (2, "transformer", False),
        (3, "transformer#2", True),
        (4, "transformer#2", False),
        (5, "transformer#2", True),
    ]


def test_an_adapter_that_is_enabled_within_a_request_is_seen() -> None:
    """While it is disabled, no layer has a scale to look at."""
    pipe = WAN.build()
    adapter(pipe)
    pipe.transformer.disable_lora()
    with attach(pipe, [SkipPolicy(steps=(0,))]) as run:
        WAN.run(pipe, callback_on_step_end=at_step(2, lambda one: one.transformer.enable_lora()))
    models = [c.model for c in run.traces[0].calls() if c.branch == "cond"]
    assert models == 3 * ["transformer"] + 3 * ["transformer#2"]


def test_a_change_within_a_request_is_exact_when_nothing_is_skipped() -> None:
    plain, pipe = WAN.build(), WAN.build()
    for one in (plain, pipe):
        adapter(one)
    changes = {"callback_on_step_end": at_step(2, lambda p: scaled(p, 0.2))}
    expected = WAN.run(plain, **changes)
    with attach(pipe, [EVERY]) as run:
        assert torch.equal(WAN.run(pipe, **changes), expected)
    assert run.traces[0].network_calls == 12


def test_the_scale_of_a_request_is_no_change_within_it() -> None:
    """`attention_kwargs` scales every layer up and down again around each network call."""
    pipe = WAN.build()
    adapter(pipe)
    changes = {"attention_kwargs": {"scale": 0.3}}
    expected = WAN.run(pipe, **changes)
    for seam in ("latent", "trunk"):
        with attach(pipe, [EVERY], seam=seam) as run:
            torch.testing.assert_close(WAN.run(pipe, **changes), expected, rtol=1e-6, atol=1e-6)
        with attach(pipe, [SOME], seam=seam) as run, counted(pipe, WAN):
            WAN.run(pipe, **changes)
        assert run.traces[0].network_calls == 6
        assert {call.model for call in run.traces[0].calls()} == {"transformer"}


class RunsFirst(Policy):
    """Runs the network before it decides, so that it runs within its own call."""

    @hookimpl
    def decide(self, call: Call) -> Compute:
        call.compute()
        return Compute("ran")


def test_a_network_that_runs_within_its_own_call_is_scaled_once() -> None:
    pipe = WAN.build()
    adapter(pipe)
    changes = {"attention_kwargs": {"scale": 0.5}}  # exact in binary, as is its inverse
    expected = WAN.run(pipe, **changes)
    assert not torch.equal(expected, WAN.run(pipe))
    with attach(pipe, [RunsFirst()], seam="trunk"):
        assert torch.equal(WAN.run(pipe, **changes), expected)


# --------------------------------------------------------------------------- profiles
def test_a_profile_names_the_adapters_it_was_calibrated_with() -> None:
    pipe = WAN.build()
    with attach(pipe, "residual_profiler") as run:
        WAN.run(pipe)
    profile = run.profile()
    assert "adapters" not in str(profile.fingerprint)
    adapter(pipe)
    scaled(pipe, 0.5)
    assert describe_adapters(pipe.transformer) == "style=0.5"
    with (
        attach(pipe, "skip_policy", profile=profile, calls=4),
        pytest.raises(ProfileMismatchError, match=r"adapters: profile 'nothing' / run 'style=0.5'"),
    ):
        WAN.run(pipe)
    allowed = {"profile": profile, "calls": 4, "allow": ("model.adapters",)}
    with erta.attach(pipe, "skip_policy", **allowed) as run:
        WAN.run(pipe)
    assert run.traces[0].reused_calls > 0
    with pytest.warns(UserWarning, match="multiple adapters"):
        adapter(pipe, "other", seed=1)
    pipe.set_adapters(["style", "other"], [0.5, 1.0])
    assert describe_adapters(pipe.transformer) == "other=1, style=0.5"
    pipe.transformer.disable_lora()
    assert describe_adapters(pipe.transformer) == ""
