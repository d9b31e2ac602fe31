"""Other projects' caches through the bridge: what they skip is counted as ours is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erta_bench.other_caches import RIVALS, Rival, Target, bridge
from erta_framework.errors import ConflictError, InputError
from erta_framework.optional_dependencies import MissingExtraError
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES

STEPS = 8
WAN = FAMILIES["wan-euler"]
ALL = (-1, 1001)
SETTINGS: dict[str, dict[str, Any]] = {
    "FirstBlockCache": {"threshold": 0.1},
    "MagCache": {
        "threshold": 1e6,
        "max_skip_steps": 2,
        "mag_ratios": [1.0] * STEPS,
        "retention_ratio": 0.0,
    },
    "SeaCache": {"threshold": 10.0},
    "TaylorSeer": {
        "cache_interval": 2,
        "disable_cache_before_step": 2,
        "use_lite_mode": True,
        "taylor_factors_dtype": torch.float32,
    },
    "PyramidAttentionBroadcast": {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": ALL,
    },
    "FasterCache": {"attention_weight_callback": lambda _: 0.5},
    "cache-dit": {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 1,
        "residual_diff_threshold": 1e6,
    },
}
EXACT = {"MagCache": (0, 3, 6), "SeaCache": (0, 3, 6, 7), "TaylorSeer": (0, 1, 3, 5, 7)}
"""Computed steps that follow from the rule of a cache whose threshold is never reached."""


def runnable() -> list[object]:
    return [
        pytest.param(
            name, marks=[pytest.mark.skipif(bool(rival.absence), reason=rival.absence or "-")]
        )
        for name, rival in RIVALS.items()
    ]


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, int]]:
    """Runs of the last projection of the last block, and of the network, from inside."""
    seen = {"trunk": 0, "network": 0}

    def noted(name: str) -> Any:
        def hook(*_: object) -> None:
            seen[name] += 1

        return hook

    last = [m for m in network.blocks[-1].modules() if isinstance(m, nn.Linear)][-1]
    handles = [
        last.register_forward_hook(noted("trunk")),
        network.patch_embedding.register_forward_hook(noted("network")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_every_cache_has_settings_here() -> None:
    assert set(SETTINGS) == set(RIVALS)


@pytest.mark.parametrize("name", runnable())
def test_calls_are_runs_of_the_block_stack(name: str) -> None:
    pipe = WAN.build()
    plain = WAN.run(pipe, STEPS)
    with watched(pipe.transformer) as seen, bridge(pipe, name, **SETTINGS[name]) as run:
        first = WAN.run(pipe, STEPS)
        second = WAN.run(pipe, STEPS)
    assert torch.equal(first, second)  # nothing of the first request is left in the second
    assert not torch.equal(first, plain)
    one, other = run.traces
    assert one.computed_steps == other.computed_steps
    assert run.forwards == [2 * STEPS, 2 * STEPS]
    assert seen["network"] == sum(run.forwards)
    calls = [call for trace in run.traces for call in trace.calls()]
    assert len(calls) == 4 * STEPS
    assert sum(call.computed for call in calls) == one.network_calls + other.network_calls
    assert {call.branch for call in calls} == {"cond", "uncond"}
    if RIVALS[name].blocks or name == "TaylorSeer":
        assert seen["trunk"] == one.network_calls + other.network_calls < 4 * STEPS
    else:  # parts of a block are skipped, so every block still runs
        assert one.network_calls == 2 * STEPS
    if name in EXACT:
        assert one.computed_steps == EXACT[name]
    assert torch.equal(WAN.run(pipe, STEPS), plain)


def test_the_trace_says_whose_decision_it_was_and_from_where() -> None:
    pipe = WAN.build()
    with bridge(pipe, "MagCache", **SETTINGS["MagCache"]) as run:
        assert run.summary() == "no request yet"
        assert run.newest is None
        WAN.run(pipe, STEPS)
    trace = run.newest
    assert trace is not None
    assert [call.source for call in trace.calls()][::2] == [None, 0, 0, None, 3, 3, None, 6]
    assert {call.reason for call in trace.calls()} == {
        "MagCache: blocks ran",
        "MagCache: blocks skipped",
    }
    assert run.summary() == (
        "request 'request-0', MagCache: 16 network calls, the blocks ran in 6 of them, "
        "3 of 8 steps computed"
    )
    assert trace.network_samples == trace.network_calls == 6
    assert run.emitted == []


def test_a_cache_that_never_skips_changes_nothing() -> None:
    pipe = WAN.build()
    plain = WAN.run(pipe, STEPS)
    with bridge(pipe, "FirstBlockCache", threshold=0.0) as run:
        assert torch.equal(WAN.run(pipe, STEPS), plain)
    assert run.traces[0].network_calls == run.forwards[0] == 2 * STEPS
    assert run.traces[0].reused_calls == 0


def test_the_bridge_adds_nothing_to_the_cache() -> None:
    """The samples are those of the cache alone."""

    def alone() -> Tensor:
        pipe = WAN.build()
        rival = RIVALS["FirstBlockCache"]
        config = rival._class(threshold=0.1)
        pipe.transformer.enable_cache(config)
        return WAN.run(pipe, STEPS)

    pipe = WAN.build()
    with bridge(pipe, "FirstBlockCache", threshold=0.1):
        assert torch.equal(WAN.run(pipe, STEPS), alone())


@pytest.mark.parametrize("name", ["FirstBlockCache", "PyramidAttentionBroadcast"])
def test_nothing_is_left_after_the_block_or_an_exception(name: str) -> None:
    pipe = WAN.build()
    plain = WAN.run(pipe, STEPS)

    class Stop(Exception):
        pass

    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 2:
            raise Stop
        return {}

    scheduler = set(vars(pipe.scheduler))
    with bridge(pipe, name, **SETTINGS[name]) as run:
        whole = WAN.run(pipe, STEPS)
        with pytest.raises(Stop):
            WAN.run(pipe, STEPS, callback_on_step_end=stop)
    run.detach()
    assert not pipe.transformer.is_cache_enabled
    assert set(vars(pipe.scheduler)) == scheduler
    for layer in pipe.transformer.modules():
        if isinstance(layer, nn.Linear):
            assert getattr(layer.forward, "__func__", None) is nn.Linear.forward
    with attach(pipe, []) as free:
        assert torch.equal(WAN.run(pipe, STEPS), plain)
    assert free.traces[0].network_calls == 2 * STEPS
    with bridge(pipe, name, **SETTINGS[name]):
        assert torch.equal(WAN.run(pipe, STEPS), whole)


def test_layers_are_counted_where_parts_of_a_block_are_skipped() -> None:
    pipe = WAN.build()
    with bridge(pipe, "FirstBlockCache", threshold=0.0) as full:
        WAN.run(pipe, STEPS)
    settings = SETTINGS["PyramidAttentionBroadcast"]
    with bridge(pipe, "PyramidAttentionBroadcast", **settings) as run:
        WAN.run(pipe, STEPS)
    assert 0 < run.work.elements < full.work.elements
    assert run.traces[0].network_calls == full.traces[0].network_calls


@pytest.mark.parametrize("name", ["flux", "cogvideox"])
def test_other_pipelines(name: str) -> None:
    """FLUX has two lists of blocks, CogVideoX runs both halves of guidance in one call."""
    family = FAMILIES[name]
    pipe = family.build()
    plain = family.run(pipe, STEPS)
    with bridge(pipe, "MagCache", **SETTINGS["MagCache"]) as run:
        assert not torch.equal(family.run(pipe, STEPS), plain)
    (trace,) = run.traces
    assert trace.computed_steps == EXACT["MagCache"]
    assert (trace.network_calls, run.forwards) == (3, [STEPS])
    assert torch.equal(family.run(pipe, STEPS), plain)


def test_what_cannot_be_bridged_is_refused() -> None:
    pipe = WAN.build()
    with pytest.raises(InputError, match=r"no cache 'MagCash' to bridge to; .*MagCache"):
        bridge(pipe, "MagCash")
    with pytest.raises(InputError, match=r"FirstBlockCacheConfig has no 'treshold'; .*threshold"):
        bridge(pipe, "FirstBlockCache", treshold=0.1)
    with attach(pipe, []), pytest.raises(ConflictError, match="has an engine attached already"):
        bridge(pipe, "FirstBlockCache").__enter__()
    with (
        bridge(pipe, "FirstBlockCache"),
        pytest.raises(ConflictError, match="has an engine attached already"),
    ):
        bridge(pipe, "MagCache", mag_ratios=[1.0] * STEPS).__enter__()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"package": "not_a_package"}, "not_a_package is not installed; pip install not-a-package"),
        ({"config": "NewCacheConfig"}, r"diffusers [\d.]+ has no NewCacheConfig; install a newer"),
    ],
)
def test_a_cache_that_is_not_there_says_so(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], said: str
) -> None:
    absent: Rival = replace(RIVALS["FirstBlockCache"], **change)  # type: ignore[arg-type]
    monkeypatch.setitem(RIVALS, "absent", absent)
    with pytest.raises(MissingExtraError, match=said):
        bridge(WAN.build(), "absent", threshold=0.1)


def test_a_version_without_a_class_beside_the_configuration_says_so() -> None:
    rival = Rival("Module", beside=("calibrator_config",), module="torch.nn", package="torch")
    target = Target(nn.Identity(), ())
    with pytest.raises(MissingExtraError, match=r"torch .* has no DMDCalibratorConfig; install"):
        rival.enable(target, {"calibrator_config": "DMDCalibratorConfig"})


def test_cache_dit_is_absent_or_there() -> None:
    """Where it is not installed, the error names the package; else it is bridged above."""
    rival = RIVALS["cache-dit"]
    expected = "" if rival.absence == "" else "cache_dit is not installed; pip install cache-dit"
    assert rival.absence == expected
    if rival.absence:
        with pytest.raises(MissingExtraError, match="pip install cache-dit"):
            bridge(WAN.build(), "cache-dit")


def test_what_enable_cache_takes_beside_its_configuration() -> None:
    """cache-dit's forecasts are an argument of their own, given as an object or by class name."""
    rival = pytest.importorskip("cache_dit")
    settings = {**SETTINGS["cache-dit"], "max_continuous_cached_steps": 1}
    config = "TaylorSeerCalibratorConfig"
    samples = []
    for beside in (
        {},
        {"calibrator_config": config},
        {"calibrator_config": getattr(rival, config)()},
    ):
        pipe = WAN.build()
        with bridge(pipe, "cache-dit", **settings, **beside) as run:
            samples.append(WAN.run(pipe, STEPS))
        assert run.traces[0].network_calls < 2 * STEPS
    assert torch.equal(samples[1], samples[2])
    assert not torch.equal(samples[0], samples[1])
