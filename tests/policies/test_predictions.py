"""What is reused of networks that predict no velocity, and what that is worth in dB.

The network is a mixture of Gaussians in closed form, so nothing is trained and nothing is random.
The measured values are printed with `pytest -s`; the limits leave room for another machine's
rounding alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from erta_framework import (
    Decision,
    Engine,
    Evaluation,
    FlowEuler,
    Needs,
    Policy,
    Request,
    Reuse,
    SamplingLoop,
    Seam,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import ProfileMismatchError
from erta_framework.sampling import sample_noise
from erta_framework.session import Call
from erta_framework.testing import AffineFlow
from erta_policies.ertacache import (
    ERTACache,
    ResidualProfiler,
    ResidualReuse,
    SkipPolicy,
    affine_fit,
    pair_errors,
)
from erta_policies.forecast import Forecaster
from erta_policies.magcache import MagCacheProfiler
from erta_policies.planning import MultistepSchedule
from erta_policies.planning import _combinations as combinations
from noise_networks import (
    exploding,
    make_network,
    make_profile,
    make_request,
    measure,
    measure_exactly,
    preserving,
    sample,
)

FORMS = {
    "exploding, noise": (exploding(), 60.0),
    "exploding, clean sample": (exploding("sample"), 15.0),
    "preserving, noise": (preserving(), 1.5),
    "preserving, noise, Karras": (preserving(grid="karras"), 2.0),
    "preserving, clean sample": (preserving("sample"), 5.0),
    "preserving, v": (preserving("v_prediction"), 4.0),
}
"""Solvers, and by how many dB reuse of the output beats reuse of the residual at 25 of 50 calls."""
EVENLY = SkipPolicy(evenly=25)


@pytest.mark.parametrize("name", FORMS)
def test_the_default_beats_the_residual_by_name(name: str) -> None:
    solver, margin = FORMS[name]
    before, after = measure(solver, [EVENLY, ResidualReuse()]), measure(solver, [EVENLY])
    print(f"{name}: residual {before:.1f} dB, output (default) {after:.1f} dB")
    assert after > before + margin


def test_the_default_is_near_plain_steps_where_the_residual_fails() -> None:
    """Against the exact solution of the ODE, with half of the calls."""
    solver = exploding()
    full = measure_exactly(solver)
    residual = measure_exactly(solver, [EVENLY, ResidualReuse()])
    output = measure_exactly(solver, [EVENLY])
    print(f"full run {full:.1f} dB, output {output:.1f} dB, residual {residual:.1f} dB")
    assert residual < 0 < full - 8 < output


@pytest.mark.parametrize("calls", [25, 17])
def test_ertacache_measures_and_reuses_the_output(calls: int) -> None:
    """Its errors, its schedule and its line are those of what is reused."""
    solver = preserving()
    profile = make_profile(solver, ResidualProfiler())
    found = {
        reuse: measure(
            solver,
            [ERTACache(profile=profile, calls=calls, linearizer=False, predictor=predictor)],
        )
        for reuse, predictor in (("residual", ResidualReuse()), ("output", True))
    }
    print(f"ERTACache at {calls} calls: {found}")
    assert found["output"] > found["residual"] + 5.0


# ------------------------------------------------------------------------- the rule itself
def describe(**facts: Any) -> SessionInfo:
    given = {"sigmas": (1.0, 0.5, 0.0), "times": (999.0, 500.0), "shape": (1, 3, 4, 4)}
    where = {"dtype": torch.float32, "device": torch.device("cpu")}
    return SessionInfo(**{**given, **where, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "reused"),
    [
        ({}, "residual"),
        ({"prediction": "velocity"}, "residual"),
        ({"prediction": "epsilon"}, "output"),
        ({"prediction": "sample"}, "output"),
        ({"prediction": "v_prediction"}, "output"),
        ({"capabilities": ("first_order", "velocity")}, "residual"),
        ({"capabilities": ("epsilon",)}, "output"),
        # a flow has no sigma above 1
        ({"sigmas": (80.0, 1.0, 0.0)}, "output"),
        ({"sigmas": (80.0, 1.0, 0.0), "prediction": "velocity"}, "residual"),
        ({"sigmas": (80.0, 1.0, 0.0), "seam": "trunk"}, "residual"),
        ({"prediction": "epsilon", "seam": "trunk"}, "residual"),
    ],
    ids=str,
)
def test_what_is_reused_follows_from_the_facts(facts: dict[str, Any], reused: str) -> None:
    if "seam" in facts:
        facts = {**facts, "seam": Seam(facts["seam"])}
    if "capabilities" in facts:  # a set would be named differently in every process
        facts = {**facts, "capabilities": frozenset(facts["capabilities"])}
    assert describe(**facts).reused == reused


class KeepCalls(Policy):
    """Notes what a call had to reuse, and what it got."""

    seen: list[tuple[Evaluation, torch.Tensor, torch.Tensor]]

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call):  # type: ignore[no-untyped-def]
        output = yield
        if call.reused:
            self.seen.append((call.history[0], call.x, output))
        return output


def test_the_reused_output_is_the_newest_one_bit_for_bit() -> None:
    seen: list[tuple[Evaluation, torch.Tensor, torch.Tensor]] = []
    solver = preserving()
    sample(solver, [KeepCalls(seen=seen), SkipPolicy(every=3)])
    assert len(seen) > 30
    for evaluation, x, output in seen:
        assert evaluation.output is not None
        assert torch.equal(output, evaluation.output)
        assert output.data_ptr() != evaluation.output.data_ptr()
        assert not torch.equal(output, x + evaluation.residual)


def test_flows_reuse_the_residual_as_published() -> None:
    flow, solver = AffineFlow((3, 4, 4)), FlowEuler()
    asked = Request(
        latents=sample_noise((3, 4, 4), [0, 1]),
        cond=flow.encode(["a", "b"]),
        schedule=solver.schedule(12),
    )
    runs = [
        SamplingLoop(Engine([SkipPolicy(every=3), *more]), solver).run(flow, asked)
        for more in ([], [ResidualReuse()])
    ]
    assert torch.equal(runs[0].sample, runs[1].sample)
    assert runs[0].trace.history_bytes == asked.latents.nbytes  # no output is kept beside it
    assert runs[1].trace.notes == ()


@pytest.mark.parametrize("named", [ResidualReuse(), Forecaster(order=1, what="residual")], ids=repr)
def test_a_residual_by_name_is_noted(named: Policy) -> None:
    _, trace = sample(preserving(), [EVENLY, named])
    (note,) = trace.notes
    assert named.name in note
    assert "predicts epsilon" in note
    assert f"note: {note}" in trace.summary()
    _, trace = sample(preserving(), [EVENLY, Forecaster(order=1)])
    assert trace.notes == ()


# ------------------------------------------------------------------- what profilers measure
def test_profiles_hold_the_errors_of_what_is_reused() -> None:
    """The relative change of outputs, whatever the latents do; and the line of the output."""
    solver = exploding()
    profile = make_profile(solver, ResidualProfiler())
    outputs: list[torch.Tensor] = []

    def logging(x: torch.Tensor, times: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        outputs.append(network(x, times, cond))
        return outputs[-1]

    network = make_network(solver)
    SamplingLoop(Engine([]), solver).run(logging, make_request(solver))
    first, later = (outputs[k].flatten(1).float() for k in (3, 7))
    expected = ((first - later).abs().mean(1) / later.abs().mean(1)).mean()
    assert float(pair_errors(profile)[3, 7]) == pytest.approx(float(expected), rel=1e-5)
    fit = affine_fit(profile, per_channel=False)
    assert float(fit.mean_x[0, 3, 7]) == pytest.approx(float(first.mean()), abs=1e-5)
    assert profile.fingerprint["reused"] == "output"


def test_magnitudes_are_those_of_the_output() -> None:
    """MagCache's table holds ratios near 1 on latents whose size falls by 148."""
    profile = make_profile(exploding(), MagCacheProfiler())
    ratios = profile.statistics["ratio"] / profile.statistics["samples"].clamp(min=1)
    assert float(ratios[0, 1:30].min()) > 0.8


def test_a_profile_of_residuals_is_refused_for_outputs() -> None:
    solver = preserving()
    profile = make_profile(solver, ResidualProfiler())
    facts = {k: v for k, v in profile.fingerprint.items() if k != "reused"}
    old = type(profile)(profile.kind, facts, profile.statistics, profile.samples)
    with pytest.raises(ProfileMismatchError, match="reused: profile 'nothing' / run 'output'"):
        sample(solver, [ERTACache(profile=old, calls=20)])


# --------------------------------------------------------------- plans where sigma is a ratio
def test_the_share_of_the_noise_is_what_plans_are_made_in() -> None:
    sigmas = torch.tensor([148.0, 3.0, 1.0, 0.0])
    shares = combinations.to_noise_shares(sigmas).tolist()
    assert shares == pytest.approx([148 / 149, 0.75, 0.5, 0.0])
    flow = torch.tensor([1.0, 0.75, 0.5, 0.0])
    assert combinations.to_noise_shares(flow) is flow


def test_planning_in_shares_beats_planning_in_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = preserving(grid="karras")
    profile = make_profile(solver, ResidualProfiler())

    def plan() -> float:
        schedule = MultistepSchedule(profile=profile, budget={"calls": 17})
        return measure(solver, [schedule, Forecaster(order=1)])

    after = plan()
    monkeypatch.setattr(combinations, "to_noise_shares", lambda sigmas: sigmas)
    before = plan()
    print(f"multistep plan and a line at 17 calls: ratio {before:.1f} dB, share {after:.1f} dB")
    assert after > before + 3.0


# -------------------------------------------------------------------- samples of their own
class Alternate(Policy):
    """Reuses every sample but one at each step, another one each time."""

    traits = Traits(memory=Needs(evaluations=1), decides="sample")

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        batch = call.x.shape[0]
        return Reuse("in turn", mask=tuple(row != step.index % batch for row in range(batch)))


def test_each_sample_reuses_its_own_newest_output() -> None:
    """A batch with a decision for each sample is the samples one by one."""
    solver = preserving()
    network, asked = make_network(solver), make_request(solver, steps=12)
    whole = SamplingLoop(Engine([Alternate()]), solver).run(network, asked)
    for row in range(len(asked.latents)):
        alone = replace(asked, latents=asked.latents[row : row + 1], cond=asked.cond[row : row + 1])
        steps = tuple(i for i in range(12) if i % len(asked.latents) == row)
        one = SamplingLoop(Engine([SkipPolicy(steps=steps)]), solver).run(network, alone)
        torch.testing.assert_close(whole.sample[row : row + 1], one.sample, rtol=0, atol=1e-12)
    assert whole.trace.samples_differed
