"""`check_policy`, `parametrize_with_checks`, and the set-up the checks run on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    Policy,
    Profile,
    Profiler,
    Reuse,
    Sampler,
    Traits,
    hookimpl,
)
from erta_framework.calibration import make_fingerprint
from erta_framework.errors import PolicyError, ProfileMismatchError
from erta_framework.testing import (
    CHECKS,
    AlternateSteps,
    CheckError,
    GaussianMixtureFlow,
    check_policy,
    parametrize_with_checks,
    toy_profile,
    toy_run,
)
from erta_framework.testing._drivers import run_plain_loop
from erta_framework.testing._setup import FLOW, NOISE, choose_setup, make_engine

NAMES = [check.__name__ for check in CHECKS]


class EveryOther(Policy):
    """Reuse every `period`-th step. Source: ours."""

    period: int = 2

    @hookimpl
    def decide(self, step):
        return Reuse("period") if step.index % self.period else None


class Undocumented(Policy):
    @hookimpl
    def decide(self, step):
        return Reuse("period") if step.index % 2 else None


class Doubled(Policy):
    """Predicts twice the residual. Source: ours."""

    @hookimpl
    def forward(self, call):
        return call.x + 2 * call.history[0].residual if call.reused else None


class NoiseOnly(EveryOther):
    """Reuse every `period`-th step of noise predictions. Source: ours."""

    traits = Traits(requires=frozenset({"epsilon"}))


class Bound(EveryOther):
    """Reuse every `period`-th step of the run that `profile` was made for. Source: ours."""

    profile: str | Profile | None = None

    @hookimpl
    def on_session_start(self, session):
        profile = self.profile if isinstance(self.profile, Profile) else Profile.load(self.profile)
        profile.require(session)


class Counter(Profiler):
    """Profiles how many samples there were. Source: ours."""

    @hookimpl
    def on_session_end(self, session, error):
        if error is not None:
            return None
        total = torch.tensor([float(session.shape[0])])
        return Profile("counter", make_fingerprint(session), {"total": total}, session.shape[0])


@pytest.mark.parametrize("policy", [EveryOther(), EveryOther(period=3), Doubled(), NoiseOnly()])
def test_a_good_policy_passes_every_check(policy):
    outcomes = check_policy(policy)
    assert [outcome.check for outcome in outcomes] == NAMES
    assert all(outcome.expected_failure is None for outcome in outcomes)


def test_a_profile_bound_policy_passes_by_refusing_other_runs():
    policy = Bound(profile=toy_profile(Counter()))
    check_policy(policy)
    with pytest.raises(ProfileMismatchError, match="dtype: profile 'float32' / run 'float64'"):
        FLOW.run(Engine([policy]), FLOW.request(dtype=torch.float64))


def test_the_contract_of_the_design_is_complete():
    assert set(NAMES) >= {
        "check_null_run_is_bit_identical",
        "check_first_step_computes",
        "check_requests_do_not_leak",
        "check_branches_are_isolated",
        "check_interleaved_sessions_agree",
        "check_inputs_are_not_mutated",
        "check_no_global_rng",
        "check_config_round_trip",
        "check_frozen",
        "check_copyable_and_picklable",
        "check_loop_equals_hand_driven_session",
        "check_exception_leaves_no_trace",
        "check_dtype_and_device_kept",
        "check_hook_arguments_exist",
        "check_skipped_steps_were_skipped",
        "check_documented",
    }
    assert len(set(NAMES)) == len(NAMES)
    assert all(check.__doc__ for check in CHECKS)


# ------------------------------------------------------------------------ expected failures
def test_all_failures_are_listed_at_once():
    with pytest.raises(CheckError, match=r"failed 1 of \d+ checks:\n  check_documented: Check"):
        check_policy(Undocumented())


def test_an_expected_failure_is_accepted_and_reported():
    outcomes = check_policy(
        Undocumented(), expected_failed_checks={"check_documented": "an example"}
    )
    assert {o.check: o.expected_failure for o in outcomes}["check_documented"] == "an example"


def test_an_expected_failure_that_passes_is_an_error():
    with pytest.raises(CheckError, match=r"check_frozen: passed, .*\(it thaws\); unlist it"):
        check_policy(EveryOther(), expected_failed_checks={"check_frozen": "it thaws"})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"check_frosen": "why"}, "did you mean 'check_frozen'"),
        ({"check_frozen": " "}, "gives no reason"),
    ],
)
def test_expected_failures_are_checked_themselves(expected, message):
    with pytest.raises(PolicyError, match=message):
        check_policy(EveryOther(), expected_failed_checks=expected)
    with pytest.raises(PolicyError, match=message):
        parametrize_with_checks([EveryOther()], expected_failed_checks=expected)


def test_a_class_is_refused_with_the_remedy():
    with pytest.raises(PolicyError, match=r"write EveryOther\(\.\.\.\)"):
        check_policy(EveryOther)
    with pytest.raises(PolicyError, match=r"write EveryOther\(\.\.\.\)"):
        parametrize_with_checks([EveryOther])


# --------------------------------------------------------------------------------- pytest
def parameters(decorator):
    def test(check, policy): ...

    (mark,) = decorator(test).pytestmark
    assert mark.name == "parametrize"
    names, values = mark.args
    assert names == ("check", "policy")
    return values


def test_ids_name_policy_and_check():
    values = parameters(parametrize_with_checks([EveryOther(), AlternateSteps()]))
    assert [value.id for value in values] == [
        f"{policy}-{name}" for policy in ("every_other", "alternate_steps") for name in NAMES
    ]


def test_policies_of_one_class_are_numbered():
    values = parameters(parametrize_with_checks([EveryOther(), EveryOther(period=3)]))
    assert {value.id.partition("-")[0] for value in values} == {"every_other1", "every_other2"}


def test_expected_failures_become_strict_xfails():
    def expected(policy):
        return {"check_documented": "an example"} if isinstance(policy, Undocumented) else {}

    values = parameters(
        parametrize_with_checks([EveryOther(), Undocumented()], expected_failed_checks=expected)
    )
    marked = {value.id: value.marks for value in values if value.marks}
    ((name, (mark,)),) = marked.items()
    assert name == "undocumented-check_documented"
    assert (mark.name, mark.kwargs) == ("xfail", {"reason": "an example", "strict": True})


@parametrize_with_checks(
    [Undocumented()], expected_failed_checks={"check_documented": "it is the point of this test"}
)
def test_decorator_at_work(check, policy):
    check(policy)


# --------------------------------------------------------------------------------- set-up
def test_the_plain_loop_is_euler_with_guidance_written_out():
    request, toy = FLOW.request(seed=5), FLOW.toy()
    x, sigmas = request.latents, request.schedule.sigmas
    for start, end in pairwise(sigmas):
        time = torch.full((2,), 1000 * start)
        cond, uncond = toy(x, time, request.cond), toy(x, time, request.uncond)
        x = x + (end - start) * (uncond + 2.0 * (cond - uncond))
    assert torch.equal(run_plain_loop(FLOW, request, FLOW.toy()), x)
    assert torch.equal(toy_run(seed=5).sample, x)


def test_predictors_get_a_companion_and_others_do_not():
    assert [p.name for p in make_engine(Doubled()).policies] == ["doubled", "alternate_steps"]
    assert [p.name for p in make_engine(EveryOther()).policies] == ["every_other"]
    assert [p.name for p in make_engine(Counter()).policies] == ["counter"]
    trace = FLOW.run(make_engine(Doubled()), FLOW.request()).trace
    assert trace.computed_steps == (0, 2, 4, 6, 8, 9)


def test_the_set_up_follows_what_a_policy_requires():
    assert choose_setup(EveryOther()) is FLOW
    assert choose_setup(NoiseOnly()) is NOISE


def test_toy_profile_merges_one_profile_a_seed():
    profile = toy_profile(Counter(), seeds=(1, 2, 3, 4))
    assert profile.samples == 8
    assert profile.statistics["total"].tolist() == [8.0]


def test_toy_profile_refuses_a_policy_that_emits_nothing():
    class Silent(Profiler):
        @hookimpl
        def on_session_end(self):
            return None

    with pytest.raises(PolicyError, match=r"Silent\(\) emitted no profile"):
        toy_profile(Silent())
    with pytest.raises(PolicyError, match=r"EveryOther\(period=2\) is no profiler"):
        toy_profile(EveryOther())


def test_a_toy_run_counts_its_network_calls():
    trace = toy_run([EveryOther()]).trace
    assert (trace.network_calls, trace.reused_calls) == (10, 10)


def test_a_toy_is_a_text_model_of_the_sampler():
    toy = GaussianMixtureFlow((2, 3))
    sampler = Sampler(
        [EveryOther()], guidance=CFG(scale=2.0), solver=FlowEuler(), num_steps=6, accelerator="cpu"
    )
    result = sampler.sample(toy, ["a", "b", "a"], seeds=[1, 2, 1])
    assert result.samples.shape == (3, 2, 3)
    assert toy.calls == result.network_calls == 6
    assert torch.equal(result.samples[0], result.samples[2])
    assert not torch.equal(result.samples[0], result.samples[1])
