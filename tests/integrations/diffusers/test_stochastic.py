"""Every profiler under every solver that draws noise: refused, or documented as fine."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest

from erta_bench.shapes_image import ShapesUNet
from erta_framework import Engine, FlowEuler, Policy, Sampler, SamplingLoop, hookimpl
from erta_framework.errors import CapabilityError
from erta_framework.modules import MODULES
from erta_framework.plugins import Profiler, policies
from erta_framework.session import STOCHASTIC
from erta_framework.testing import AffineFlow
from erta_integrations.diffusers import CAPABILITIES, Support, attach
from erta_integrations.diffusers.bundled import pipeline, request
from erta_integrations.diffusers.pipeline import capabilities, explain_noise
from erta_integrations.diffusers.pipeline._prediction import ALWAYS, TAKE_ETA
from erta_policies.ertacache import ResidualProfiler
from erta_policies.fitted import FittedProfiler
from tiny_pipelines import FAMILIES

PAGE = Path(__file__).parents[3] / "docs/how-to/calibrate-and-plan.md"
SDE = {"algorithm_type": "sde-dpmsolver++"}
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ALWAYS},
    "DPMSolverMultistepScheduler": SDE,
    "DPMSolverSinglestepScheduler": SDE,
    "EDMDPMSolverMultistepScheduler": SDE,
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
    **{name: {"eta": 0.5} for name in TAKE_ETA},
}
"""How each scheduler of diffusers comes to draw noise."""
CHURN = ("EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler")
"""Schedulers that draw noise with `s_churn` alone, which no pipeline passes to their step."""


@dataclass(frozen=True, kw_only=True)
class AncestralEuler(FlowEuler):
    """A solver of the own loop that draws noise, and says so."""

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {STOCHASTIC}


def list_profilers() -> dict[str, Profiler]:
    found = policies()
    classes = {name: found.load(name) for name in found.names()}
    options: dict[str, dict[str, Any]] = {
        "budcache_profiler": {"budget": {"calls": 12}},
        "replay_profiler": {"threshold": 0.1},
    }
    return {
        name: cls(**options.get(name, {}))
        for name, cls in classes.items()
        if issubclass(cls, Profiler)
    }


PROFILERS = list_profilers()


def read_reasons() -> dict[str, str]:
    """The table of the page: what it says of each profiler."""
    text = PAGE.read_text(encoding="utf-8").partition("## Solvers that draw noise")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|$", text.partition("\n## ")[0], re.MULTILINE)
    return dict(rows)


def make_scheduler(name: str) -> tuple[Any, float]:
    """A scheduler that draws noise, without what its constructor needs; and eta."""
    settings = dict(SETTINGS[name])
    eta = settings.pop("eta", 0.0)
    scheduler = object.__new__(getattr(diffusers, name))
    scheduler._internal_dict = settings
    return scheduler, eta


def test_the_page_speaks_of_every_profiler() -> None:
    assert set(read_reasons()) == set(PROFILERS)


@pytest.mark.parametrize("solver", [*SETTINGS, "own loop"])
@pytest.mark.parametrize("name", PROFILERS)
def test_a_profiler_refuses_noise_or_the_page_says_why_not(name: str, solver: str) -> None:
    profiler, reason = PROFILERS[name], read_reasons()[name]
    if solver == "own loop":
        offered, drawing = AncestralEuler().capabilities, "AncestralEuler"
    else:
        scheduler, eta = make_scheduler(solver)
        offered, drawing = capabilities(scheduler, eta), explain_noise(scheduler, eta)
        assert drawing.startswith(solver)
    engine = Engine([profiler])
    if profiler.traits.deterministic:
        assert reason.startswith("refused")
        with pytest.raises(
            CapabilityError, match=re.escape(f"{drawing} draws new noise")
        ) as raised:
            engine.check(offered | profiler.traits.requires | {MODULES}, drawing)
        assert "DDIMScheduler with eta=0" in str(raised.value)
    else:
        assert reason.startswith("allowed: ")
        engine.check(offered | profiler.traits.requires | {MODULES}, drawing)


@pytest.mark.parametrize(
    "name", [n for n, c in CAPABILITIES.items() if c.support is not Support.REFUSED]
)
def test_every_scheduler_whose_code_draws_noise_is_known(name: str) -> None:
    cls = getattr(diffusers, name, None)
    if cls is None or not inspect.isclass(cls) or "step" not in vars(cls):
        return  # an extra of diffusers that is not installed
    code = inspect.getsource(cls.step)
    draws = re.search(r"randn_tensor\(|torch\.randn\(|self\.noise_sampler\(", code)
    assert bool(draws) <= (name in SETTINGS or name in CHURN), name


def test_without_noise_nothing_is_refused() -> None:
    for scheduler in (
        diffusers.DDIMScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ):
        assert explain_noise(scheduler) == ""
        assert STOCHASTIC not in capabilities(scheduler)


# ------------------------------------------------------------------------------ at the doors
def test_attach_names_scheduler_and_remedy() -> None:
    pipe = FAMILIES["sd"].build()
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler()
    with pytest.raises(CapabilityError, match="EulerAncestralDiscreteScheduler draws new noise"):
        attach(pipe, [FittedProfiler()])
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**SDE)
    with pytest.raises(CapabilityError, match="with algorithm_type='sde-dpmsolver\\+\\+' draws"):
        attach(pipe, [FittedProfiler()])


def test_a_profiler_that_is_allowed_emits_under_noise() -> None:
    family, pipe = FAMILIES["sd"], FAMILIES["sd"].build()
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler()
    with attach(pipe, [ResidualProfiler()]) as run:
        family.run(pipe, 4)
    assert bool(run.profile().statistics["ratio"].isfinite().all())


def test_the_sampler_refuses_before_it_samples() -> None:
    flow = AffineFlow((2, 2, 2))
    sampler = Sampler(solver=AncestralEuler(), num_steps=4, accelerator="cpu")
    with pytest.raises(CapabilityError, match="AncestralEuler draws new noise at every step"):
        sampler.calibrate(flow, ["a"], profiler=FittedProfiler())
    assert flow.calls == 0
    with pytest.raises(CapabilityError, match="AncestralEuler draws"):
        SamplingLoop(Engine([FittedProfiler()]), AncestralEuler())


class Facts(Policy):
    """Notes what the driver says of a request."""

    seen: list[Any]

    @hookimpl
    def on_session_start(self, session: Any) -> None:
        self.seen.append(session)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_eta_is_seen_when_the_pipeline_is_called(eta: float) -> None:
    model, seen = ShapesUNet(), []
    pipe = pipeline(model)
    asked = request(model, model.demo_prompts()[0][:1], seeds=[1], num_steps=3)
    with attach(pipe, [Facts(seen=seen)]):
        pipe(**asked, eta=eta)
    (info,) = seen
    assert (STOCHASTIC in info.capabilities) is (eta > 0)
    assert info.solver.endswith("eta=0.5") is (eta > 0)
    assert (info.prediction, info.reused) == ("epsilon", "output")
