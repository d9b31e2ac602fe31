"""`NoiseScale`: the noise that a prediction stands for is scaled, whatever it predicts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import (
    CFG,
    DDIM,
    Engine,
    FlowEuler,
    Interval,
    Policy,
    SamplingLoop,
    SessionInfo,
    Traits,
    hookimpl,
)
from erta_framework.config import build_policies
from erta_framework.errors import CapabilityError, PolicyError, ProtocolError
from erta_framework.sampling import list_capabilities
from erta_framework.sampling.solvers import (
    ContinuousVP,
    Flow,
    Parametrisation,
    VarianceExploding,
    VPSolver,
)
from erta_framework.session import GUIDED, Guided
from erta_framework.testing import AlternateSteps, GaussianEpsilon, GaussianMixtureFlow, toy_run
from erta_framework.testing._setup import FLOW, NOISE
from erta_policies.noise_scale import NoiseCurve, NoiseScale, scale_noise

FORMS = [
    Parametrisation(process=process, prediction=prediction)
    for process in (Flow(), ContinuousVP(), VarianceExploding())
    for prediction in process.predictions
]


# ------------------------------------------------------------------------- mathematics
@given(
    form=st.sampled_from(FORMS),
    sigma=st.floats(0.02, 0.98),
    factor=st.floats(0.5, 1.5),
    seed=st.integers(0, 999),
)
def test_the_noise_is_scaled_and_the_latents_are_still_made_of_it(form, sigma, factor, seed):
    draw = torch.Generator().manual_seed(seed)
    x, prediction = torch.randn(2, 2, 3, 4, generator=draw, dtype=torch.float64)
    alpha, level = form.process.scales(sigma)
    found = scale_noise(prediction, x, factor, alpha, level, form.prediction)
    noise, clean = form.noise(x, found, sigma), form.clean(x, found, sigma)
    torch.testing.assert_close(noise, factor * form.noise(x, prediction, sigma))
    torch.testing.assert_close(alpha * clean + level * noise, x)


@given(form=st.sampled_from(FORMS), sigma=st.floats(0.02, 0.98), seed=st.integers(0, 99))
def test_scaling_the_guided_prediction_is_scaling_its_branches(form, sigma, seed):
    """For plain guidance, whose weights sum to 1; other rules bend it, so it acts on the result."""
    draw = torch.Generator().manual_seed(seed)
    x, cond, uncond = torch.randn(3, 2, 3, generator=draw, dtype=torch.float64)
    scales = form.process.scales(sigma)

    def scaled(p):
        return scale_noise(p, x, 0.97, *scales, form.prediction)

    guided = uncond + 3.0 * (cond - uncond)
    both = scaled(uncond) + 3.0 * (scaled(cond) - scaled(uncond))
    torch.testing.assert_close(scaled(guided), both)


def test_a_v_network_on_exploding_latents_is_scaled_as_on_preserved_ones():
    sigma, draw = 3.0, torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    stretch = math.hypot(1.0, sigma)
    preserved = scale_noise(v, x / stretch, 0.96, 1 / stretch, sigma / stretch, "v_prediction")
    exploding = scale_noise(v, x, 0.96, 1.0, sigma, "v_prediction")
    torch.testing.assert_close(preserved, exploding)


def test_channels_of_a_learned_variance_stay():
    x, prediction = torch.randn(2, 4, 3, 3), torch.randn(2, 8, 3, 3)
    before = prediction.clone()
    found = scale_noise(prediction, x, 0.9, 0.6, 0.8, "epsilon")
    assert torch.equal(found[:, :4], prediction[:, :4] * 0.9)
    assert torch.equal(found[:, 4:], prediction[:, 4:])
    assert torch.equal(prediction, before)


def test_a_prediction_of_another_form_is_refused():
    with pytest.raises(PolicyError, match=r"\(2, 8, 4, 4\) and its latents \(2, 4, 3, 3\)"):
        scale_noise(torch.zeros(2, 8, 4, 4), torch.zeros(2, 4, 3, 3), 0.9, 0.6, 0.8, "epsilon")


# ------------------------------------------------------------------------- the curve
def test_the_published_values():
    curve = NoiseCurve()
    found = [round(curve.at(t), 3) for t in (1.0, 0.8, 0.5, 0.4, 0.2, 0.0)]
    assert found == [1.0, 0.984, 0.98, 0.98, 0.964, 0.961]
    assert abs(curve.at(0.4) - curve.at(0.4 - 1e-12)) < 1.4e-4


@given(high=st.floats(0.9, 1.1), low=st.floats(0.9, 1.1), turn=st.floats(0, 0.9), t=st.floats(0, 1))
def test_the_curve_stays_between_its_levels(high, low, turn, t):
    factor = NoiseCurve(high=high, low=low, turn=turn).at(t)
    assert min(high, low, 1.0) - 1e-9 <= factor <= max(high, low, 1.0) + 1e-9


@pytest.mark.parametrize(
    "options", [{"scale": 0.0}, {"scale": (0.9, -1.0)}, {"scale": ()}, {"scale": math.inf}]
)
def test_factors_are_above_0(options):
    with pytest.raises(PolicyError, match="scale of NoiseScale"):
        NoiseScale(**options)


@pytest.mark.parametrize("options", [{"high": 0.0}, {"low": -1.0}, {"turn": 1.0}])
def test_a_curve_out_of_range_is_refused(options):
    with pytest.raises(PolicyError, match="of the noise curve"):
        NoiseCurve(**options)


def test_a_list_must_have_a_factor_for_each_step():
    with pytest.raises(PolicyError, match="has 3 factors, the run has 10 steps"):
        toy_run([NoiseScale(scale=(1.0, 0.9, 0.9))])


def test_it_is_configured_by_a_number_a_list_or_a_curve():
    given = [0.98, [1.0, 0.97], None]
    found = [build_policies([{"noise_scale": {"scale": each}}])[0].scale for each in given]
    assert found == [0.98, (1.0, 0.97), None]
    (policy,) = build_policies([{"noise_scale": {"curve": {"low": 0.95}}}])
    assert policy.curve == NoiseCurve(low=0.95)


# ------------------------------------------------------------------------- in the own loop
@pytest.mark.parametrize("setup", [FLOW, NOISE])
@pytest.mark.parametrize("scale", [1.0, (1.0,) * 10])
def test_a_factor_of_1_changes_no_bit(setup, scale):
    assert torch.equal(
        toy_run([NoiseScale(scale=scale)], setup=setup).sample, toy_run(setup=setup).sample
    )


def test_it_acts_once_a_step_on_the_guided_prediction_of_computed_and_reused_steps():
    seen = []

    class Watch(Policy):
        """Remembers what it is handed."""

        traits = Traits(static=True)

        @hookimpl(wrapper=True)
        def adjust_prediction(self, step, guided):
            output = yield
            seen.append((step.index, guided, output))
            return output

    result = toy_run([Watch(), NoiseScale(scale=0.9), AlternateSteps()], setup=NOISE)
    assert [index for index, *_ in seen] == list(range(10))
    assert result.trace.network_calls < 20
    for _, guided, output in seen:
        assert torch.equal(output, 0.9 * guided.prediction)
        assert guided.alpha**2 + guided.level**2 == pytest.approx(1.0)


def test_the_first_step_of_a_flow_has_no_clean_sample_and_stays():
    seen = []

    class Watch(Policy):
        """Remembers what becomes of the prediction."""

        @hookimpl(wrapper=True)
        def adjust_prediction(self, step, guided):
            output = yield
            seen.append(output is guided.prediction)
            return output

    toy_run([Watch(), NoiseScale(scale=0.9)])
    assert seen == [True] + [False] * 9


def test_noise_and_v_networks_end_in_the_same_sample():
    """The same denoiser, written as noise and as v, under the same factors."""
    noise = GaussianEpsilon((3, 4, 4))
    vp, alike = DDIM(), VPSolver(prediction="v_prediction")
    sigma_of = {vp.time_of(s): s for s in vp.schedule(10).sigmas[:-1]}

    def as_v(x, times, condition):
        alpha, level = vp.scales(sigma_of[float(times[0])])
        epsilon = noise(x, times, condition)
        return (epsilon - level * x) / alpha

    samples = []
    for solver, network in ((vp, noise), (alike, as_v)):
        loop = SamplingLoop(Engine([NoiseScale()]), solver, CFG(scale=2.0))
        samples.append(loop.run(network, NOISE.request()).sample)
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(samples[0], toy_run(setup=NOISE).sample, atol=1e-3)


# ------------------------------------------------------------------------- refusals
def describe(capabilities, prediction="velocity"):
    return SessionInfo(
        sigmas=(1.0, 0.5, 0.0),
        times=(1000.0, 500.0),
        shape=(1, 3, 2, 2),
        dtype=torch.float32,
        device=torch.device("cpu"),
        prediction=prediction,
        capabilities=frozenset(capabilities),
    )


def test_a_driver_that_does_not_hand_the_prediction_over_is_refused():
    with pytest.raises(CapabilityError, match="requires guided"):
        Engine([NoiseScale()]).session(describe({"velocity"}))
    assert GUIDED in list_capabilities(FlowEuler())


def test_an_unknown_prediction_is_refused():
    session = Engine([NoiseScale()]).session(describe({GUIDED}, prediction=""))
    with pytest.raises(CapabilityError, match="must know what the network predicts"), session:
        pass


def test_a_step_that_leaves_the_adjustment_out_is_an_error():
    x = torch.ones(1, 3, 2, 2)
    with Engine([NoiseScale()]).session(describe({GUIDED})) as session:
        session.begin(Interval(0, 1.0, 0.5, 1000.0, 500.0))
        v = session.forward(x, lambda: x.clone())
        with pytest.raises(ProtocolError, match="adjust"):
            session.adjust(Guided(x, v, 0.0, 1.0))
        session.settle()
        with pytest.raises(ProtocolError, match="ended without adjust, which NoiseScale"):
            session.end(x)
        session.adjust(Guided(x, v, 0.0, 1.0))
        with pytest.raises(ProtocolError, match="called twice in step 0"):
            session.adjust(Guided(x, v, 0.0, 1.0))
        session.end(x)


def test_without_a_policy_that_wants_it_the_prediction_passes_through():
    x = torch.ones(1, 3, 2, 2)
    with Engine([]).session(describe({"velocity"})) as session:
        session.begin(Interval(0, 1.0, 0.5, 1000.0, 500.0))
        v = session.forward(x, lambda: x.clone())
        session.settle()
        assert not session.adjusts
        assert session.adjust(Guided(x, v, 0.0, 1.0)) is v
        session.end(x)


@pytest.mark.parametrize("wrong", [lambda p: 1.0, lambda p: p[:1], lambda p: p.double()])
def test_an_adjusted_prediction_of_another_kind_is_refused(wrong):
    class Wrong(Policy):
        """Returns something that the solver cannot take."""

        @hookimpl
        def adjust_prediction(self, guided):
            return wrong(guided.prediction)

    with pytest.raises(PolicyError, match=r"Wrong.* returned .* from adjust_prediction at step 0"):
        toy_run([Wrong()])


def test_the_toy_of_a_mixture_ends_elsewhere_with_scaled_noise():
    assert isinstance(FLOW.toy(), GaussianMixtureFlow)
    assert not torch.equal(toy_run([NoiseScale()]).sample, toy_run().sample)
