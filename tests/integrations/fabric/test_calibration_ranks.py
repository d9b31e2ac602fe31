"""Calibration over ranks: the profile of one process, and what must be refused on every rank."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from erta_framework import CFG, Profile, Sampler
from erta_framework.errors import PolicyError
from erta_framework.testing import AffineFlow
from erta_integrations.fabric.agreement import CFGParallel
from erta_policies.ertacache import ReplayProfiler, ResidualProfiler

LIMIT = 120
PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]
SCRIPT = '''
"""Calibrates on two ranks; each writes what it found."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from erta_framework import CFG, Profile, Profiler, Sampler, hookimpl
from erta_framework.errors import ErtaError
from erta_framework.testing import AffineFlow
from erta_integrations.fabric.agreement import CFGParallel
from erta_policies.ertacache import ReplayProfiler, ResidualProfiler

torch.set_num_threads(1)
prompts = json.loads(sys.argv[1])


def sampler(**settings):
    return Sampler(accelerator="cpu", devices=2, strategy="ddp", **{"num_steps": 6, **settings})


class Fails(Profiler):
    """Cannot calibrate the prompts of the second rank."""

    @hookimpl
    def on_session_end(self, session, error):
        if dist.get_rank() == 1:
            raise ErtaError("this rank cannot")
        return Profile("nothing", {}, {}, 1)


def said(function):
    try:
        function()
    except ErtaError as error:
        return f"{type(error).__name__}: {error}"
    return ""


residual = ResidualProfiler()
for name, texts, chosen, batch in [
    ("all", prompts, residual, 16),
    ("single", prompts, residual, 1),
    ("one", prompts[:1], residual, 16),
    ("replay", prompts, ReplayProfiler(threshold=0.2), 1),
]:
    found = sampler(batch_size=batch).calibrate(AffineFlow(), texts, seed=3, profiler=chosen)
    found.save(f"{name}-{dist.get_rank()}.safetensors")


def apart():
    steps = 6 + dist.get_rank()
    sampler(num_steps=steps).calibrate(AffineFlow(), prompts, profiler=residual)


def halved():
    guidance = CFGParallel(CFG(scale=3.0), dist.group.WORLD, timeout=20)
    alone = Sampler(accelerator="cpu", num_steps=6, guidance=guidance)
    alone.calibrate(AffineFlow(), prompts, profiler=residual)


errors = {
    "failed": said(lambda: sampler().calibrate(AffineFlow(), prompts, profiler=Fails())),
    "unlike": said(apart),
    "halved": said(halved),
}
Path(f"{dist.get_rank()}.json").write_text(json.dumps(errors))
dist.barrier()
dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks left what they found; no process outlives the limit."""
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "LT_"))}
    process = subprocess.Popen(
        [sys.executable, "script.py", json.dumps(PROMPTS)],
        cwd=folder,
        env={**keep, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return folder


def errors(place: Path, name: str) -> list[str]:
    return [json.loads((place / f"{rank}.json").read_text("utf-8"))[name] for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "batch"), [("all", 5, 16), ("single", 5, 1), ("one", 1, 16), ("replay", 5, 1)]
)
def test_two_ranks_give_the_profile_of_one(place: Path, name: str, count: int, batch: int) -> None:
    profiler = ReplayProfiler(threshold=0.2) if name == "replay" else ResidualProfiler()
    sampler = Sampler(num_steps=6, accelerator="cpu", batch_size=batch)
    alone = sampler.calibrate(AffineFlow(), PROMPTS[:count], seed=3, profiler=profiler)
    assert alone.samples == count
    for rank in (0, 1):
        found = Profile.load(place / f"{name}-{rank}.safetensors")
        assert (found.kind, found.samples) == (alone.kind, count)
        assert found.fingerprint == alone.fingerprint
        assert found.provenance == alone.provenance
        for key, values in alone.statistics.items():
            torch.testing.assert_close(found.statistics[key], values, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_rank_that_fails_ends_all(place: Path) -> None:
    other, own = errors(place, "failed")
    assert own == "ErtaError: this rank cannot"
    assert other == "PolicyError: calibration failed on another rank; its message says why"


@pytest.mark.slow
def test_ranks_that_calibrate_other_runs_are_refused(place: Path) -> None:
    for said in errors(place, "unlike"):
        assert said.startswith("ProfileMismatchError: these profiles do not describe the same run")
        assert "num_steps: first '6' / number 2 '7'" in said


@pytest.mark.slow
def test_a_rank_with_one_branch_is_refused(place: Path) -> None:
    for said in errors(place, "halved"):
        assert said.startswith("PolicyError: ResidualProfiler observes all branches (cond, uncond)")
        assert "calibrate with CFG on one rank" in said


# ---------------------------------------------------------------------------- in one process
class Half(CFGParallel):
    """`CFGParallel` as its first rank is, with nobody to exchange with."""

    def __init__(self) -> None:
        self.cfg = CFG(scale=3.0)

    def branches(self, cond, uncond, index, num_steps):  # type: ignore[no-untyped-def]
        return self.cfg.branches(cond, uncond, index, num_steps)[:1]

    def combine(self, outputs):  # type: ignore[no-untyped-def]
        return outputs["cond"]


@pytest.mark.parametrize("profiler", [ResidualProfiler(), ReplayProfiler(threshold=0.1)])
def test_a_profiler_that_would_see_a_part_of_the_branches_is_refused(profiler) -> None:  # type: ignore[no-untyped-def]
    sampler = Sampler(num_steps=4, accelerator="cpu", guidance=Half())
    assert len(sampler.sample(AffineFlow(), ["a"]).samples) == 1
    with pytest.raises(PolicyError, match=r"observes all branches \(cond, uncond\), but here oth"):
        sampler.calibrate(AffineFlow(), ["a"], profiler=profiler)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (0.25, 0.75), (1.0, 1.0)])
def test_guidance_on_a_part_of_the_steps_is_calibrated(start: float, stop: float) -> None:
    guidance = CFG(scale=3.0, start=start, stop=stop)
    sampler = Sampler(num_steps=4, accelerator="cpu", guidance=guidance)
    found = sampler.calibrate(AffineFlow(), ["a"], profiler=ResidualProfiler())
    assert found.statistics["samples"][0].tolist() == [1.0] * 4
    assert found.statistics["samples"][1].sum() == 4 * (stop - start)
