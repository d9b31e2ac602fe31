"""Exported schedules, run by the caches that they were exported for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from erta_bench.other_caches import bridge
from erta_framework.budgets import export_schedule, plan_export
from erta_framework.budgets.formats import ScheduleDocument, load_format, write_schedule
from erta_framework.config import build_policies
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES

STEPS = 12
SCHEDULES = [(0, 2, 5, 11), (0, 1, 2, 3, 11), (0, 1, 7, 8, 11), tuple(range(STEPS))]
WAN = FAMILIES["wan-euler"]


def settings(steps: tuple[int, ...], form: str) -> dict[str, Any]:
    plan = plan_export(build_policies([{"skip_policy": {"steps": list(steps)}}]), STEPS)
    assert plan.computed == steps
    return export_schedule(plan, form)


@pytest.mark.parametrize("steps", SCHEDULES)
@pytest.mark.parametrize("name", ["wan-euler", "flux"])
def test_magcache_of_diffusers_and_ours_run_the_exported_steps(
    name: str, steps: tuple[int, ...]
) -> None:
    """Both also give the same latents: the residual of the block stack stands in."""
    family, found = FAMILIES[name], settings(steps, "magcache")
    pipe = family.build()
    with bridge(pipe, "MagCache", **found["MagCacheConfig"]) as theirs:
        expected = family.run(pipe, STEPS)
    with attach(pipe, "magcache", seam="trunk", **found["magcache"]) as ours:
        samples = family.run(pipe, STEPS)
    assert theirs.traces[0].computed_steps == ours.traces[0].computed_steps == steps
    assert theirs.traces[0].network_calls == ours.traces[0].network_calls
    assert torch.equal(samples, expected)


@pytest.mark.parametrize("steps", SCHEDULES)
def test_cache_dit_runs_the_exported_steps(steps: tuple[int, ...]) -> None:
    pytest.importorskip("cache_dit")
    pipe = WAN.build()
    found = settings(steps, "cache-dit")["DBCacheConfig"]
    blocks = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}
    with bridge(pipe, "cache-dit", **blocks, **found) as run:
        WAN.run(pipe, STEPS)
        WAN.run(pipe, STEPS)
    assert [trace.computed_steps for trace in run.traces] == [steps, steps]
    assert {trace.network_calls for trace in run.traces} == {2 * len(steps)}


@pytest.mark.parametrize("steps", SCHEDULES[:3])
@pytest.mark.parametrize("style", ["json", "yaml"])
def test_cache_dit_loads_the_exported_file_and_runs_its_steps(
    steps: tuple[int, ...], style: str, tmp_path: Path
) -> None:
    load_configs = pytest.importorskip("cache_dit").load_configs
    plan = plan_export(build_policies([{"skip_policy": {"steps": list(steps)}}]), STEPS)
    path = tmp_path / "cache.yaml"
    text = write_schedule(ScheduleDocument.of(plan), "cache-dit-config", style=style)
    path.write_text(text, encoding="utf-8")
    pipe, found = WAN.build(), load_configs(str(path))["cache_config"]
    with bridge(pipe, "cache-dit", **vars(found)) as run:
        WAN.run(pipe, STEPS)
    assert run.traces[0].computed_steps == steps
    assert run.traces[0].network_calls == 2 * len(steps)


@pytest.mark.parametrize("steps", SCHEDULES[:3])
def test_cache_dit_makes_our_mask_of_the_exported_environment(steps: tuple[int, ...]) -> None:
    """As SGLang does: both lists and the number of steps of the request go to `steps_mask`."""
    steps_mask = pytest.importorskip("cache_dit").steps_mask
    plan = plan_export(build_policies([{"skip_policy": {"steps": list(steps)}}]), STEPS)
    found = load_format("sglang").settings(ScheduleDocument.of(plan), {})
    bins = {
        name: [int(part) for part in found[f"SGLANG_CACHE_DIT_SCM_{name.upper()}"].split(",")]
        for name in ("compute_bins", "cache_bins")
    }
    mask = steps_mask(**bins, total_steps=STEPS, mask_policy="medium")
    assert tuple(step for step, computed in enumerate(mask) if computed) == steps
