"""`ERTACache` as a recipe: which parts it stands for, and how they are swapped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erta_framework import Call, Engine, Needs, Policy, Step, Traits, hookimpl
from erta_framework.config import load_config
from erta_framework.errors import ConfigError, PolicyError, ProfileError, ProfileMismatchError
from erta_policies.ertacache import (
    ErrorLinearizer,
    ERTACache,
    ResidualProfiler,
    ResidualReuse,
    SkipPolicy,
    TimestepAdjuster,
)


def names(policy: Policy) -> list[str]:
    return [part.name for part in policy.parts()]


class OutputReuse(Policy):
    """A predictor of another author: the newest output as it was."""

    traits = Traits(memory=Needs(evaluations=1, pairs=True))

    @hookimpl
    def forward(self, step: Step, call: Call) -> torch.Tensor | None:
        return call.history[0].output if call.reused else None


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, ["skip_policy", "error_linearizer"]),
        ({"adjuster": True}, ["skip_policy", "timestep_adjuster", "error_linearizer"]),
        ({"predictor": ResidualReuse(), "linearizer": False}, ["skip_policy", "residual_reuse"]),
        ({"predictor": False}, ["skip_policy", "error_linearizer"]),
        ({"predictor": False, "linearizer": False}, ["skip_policy"]),
        (
            {"predictor": OutputReuse(), "linearizer": False},
            ["skip_policy", "output_reuse"],
        ),
    ],
)
def test_switches(switches: dict[str, Any], expected: list[str]) -> None:
    assert names(ERTACache(profile="p.safetensors", calls=5, **switches)) == expected


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({}, "no schedule"),
        ({"calls": 5, "threshold": 0.1}, "calls and threshold"),
        ({"calls": 5, "skip": SkipPolicy(every=2)}, "calls and skip"),
        (
            {"calls": 5, "threshold": 0.1, "skip": SkipPolicy(every=2)},
            "calls and threshold and skip",
        ),
    ],
)
def test_exactly_one_schedule(options: dict[str, Any], got: str) -> None:
    with pytest.raises(PolicyError, match=f"ERTACache got {got}; give exactly one of"):
        ERTACache(profile="p.safetensors", **options)


def test_every_part_gets_the_profile_and_allow(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    for adjuster, linearizer in (
        (True, True),
        (TimestepAdjuster(form="difference"), ErrorLinearizer(granularity="channel")),
    ):
        recipe = ERTACache(
            profile=profile, calls=5, adjuster=adjuster, linearizer=linearizer, allow=("dtype",)
        )
        skip, adjusts, corrects = recipe.parts()
        for part in (skip, adjusts, corrects):
            assert part.profile is profile  # type: ignore[attr-defined]
            assert part.allow == ("dtype",)  # type: ignore[attr-defined]
    assert adjusts.form == "difference"  # type: ignore[attr-defined]
    assert corrects.granularity == "channel"  # type: ignore[attr-defined]


def test_parts_keep_what_they_bring(world: SimpleNamespace) -> None:
    mine, theirs = world.calibrate(), world.calibrate(latents=world.noise(seed=4))
    phi = (0.5,) * 8
    recipe = ERTACache(
        profile=mine,
        skip=SkipPolicy(profile=theirs, calls=4, allow=("solver",)),
        adjuster=TimestepAdjuster(phi=phi),
        allow=("dtype",),
    )
    skip, adjuster, linearizer = recipe.parts()
    assert isinstance(skip, SkipPolicy)
    assert (skip.profile, skip.allow) == (theirs, ("solver",))
    assert isinstance(adjuster, TimestepAdjuster)
    assert (adjuster.phi, adjuster.profile) == (phi, None)
    assert isinstance(linearizer, ErrorLinearizer)
    assert linearizer.profile is mine


def test_a_swapped_skip_policy_may_walk_the_same_profile(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    recipe = ERTACache(profile=profile, skip=SkipPolicy(calls=4, warmup=3))
    result = world.run([recipe])
    plan = SkipPolicy(profile=profile, calls=4, warmup=3).plan(8)
    assert result.trace.computed_steps == plan.computed == (0, 1, 2, 7)


def test_the_recipe_is_its_parts_bit_for_bit(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=world.cfg)
    recipe = ERTACache(profile=profile, calls=4, adjuster=True)
    by_hand = [
        SkipPolicy(profile=profile, calls=4),
        ResidualReuse(),
        TimestepAdjuster(profile=profile),
        ErrorLinearizer(profile=profile),
    ]
    one = world.run([recipe], guidance=world.cfg)
    other = world.run(by_hand, guidance=world.cfg)
    assert torch.equal(one.sample, other.sample)
    assert [c.reason for c in one.trace.calls()] == [c.reason for c in other.trace.calls()]
    core_reuses = ERTACache(profile=profile, calls=4, adjuster=True, predictor=False)
    assert torch.equal(world.run([core_reuses], guidance=world.cfg).sample, one.sample)


def test_every_part_changes_the_sample(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    samples = [
        world.run([ERTACache(profile=profile, calls=4, **switches)]).sample
        for switches in (
            {"linearizer": False},
            {},
            {"adjuster": True},
            {"predictor": OutputReuse(), "linearizer": False},
        )
    ]
    assert all(not torch.equal(a, b) for k, a in enumerate(samples) for b in samples[k + 1 :])


def test_parts_compose_without_the_recipe(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    skip = SkipPolicy(every=2)
    network = world.Swirl()
    corrected = world.run([skip, ErrorLinearizer(profile=profile)], network=network)
    assert network.calls == 5  # 0, 2, 4, 6 and the last
    assert not torch.equal(corrected.sample, world.run([skip]).sample)


def test_explain_mentions_the_parts(world: SimpleNamespace) -> None:
    text = Engine([ERTACache(profile=world.calibrate(), calls=5, adjuster=True)]).explain()
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "skip_policy -> core" in lines["decide"]
    assert "[error_linearizer] -> core" in lines["forward"]
    assert "timestep_adjuster" in lines["adjust_interval"]
    assert "schedule is static" in text
    assert "1 evaluations (residuals)" in text


def test_the_recipe_asks_for_its_profiler() -> None:
    assert isinstance(ERTACache(calls=5).calibrator(), ResidualProfiler)
    assert isinstance(SkipPolicy(profile="p", calls=5).calibrator(), ResidualProfiler)
    assert isinstance(ErrorLinearizer().calibrator(), ResidualProfiler)
    assert isinstance(TimestepAdjuster().calibrator(), ResidualProfiler)
    assert TimestepAdjuster(phi=(1.0,)).calibrator() is None
    assert SkipPolicy(every=2).calibrator() is None


# ------------------------------------------------------------------- from a configuration
def configured(tmp_path: Path, text: str) -> tuple[Policy, ...]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path).policies


def test_swapped_parts_from_a_configuration(world: SimpleNamespace, tmp_path: Path) -> None:
    profile = world.calibrate()
    file = profile.save(tmp_path / "p.safetensors")
    (recipe,) = configured(
        tmp_path,
        f"""
        policies:
          - ertacache:
              profile: {file}
              calls: 5
              adjuster: {{timestep_adjuster: {{form: difference, network_time: actual}}}}
              linearizer: false
        """,
    )
    assert isinstance(recipe, ERTACache)
    skip, adjuster = recipe.parts()
    assert isinstance(skip, SkipPolicy)
    assert skip.calls == 5
    assert isinstance(adjuster, TimestepAdjuster)
    assert (adjuster.form, adjuster.network_time) == ("difference", "actual")
    assert str(adjuster.profile) == str(file)
    by_hand = ERTACache(
        profile=profile,
        calls=5,
        adjuster=TimestepAdjuster(form="difference", network_time="actual"),
        linearizer=False,
    )
    assert torch.equal(world.run([recipe]).sample, world.run([by_hand]).sample)


def test_a_list_of_parts_from_a_configuration(world: SimpleNamespace, tmp_path: Path) -> None:
    file = world.calibrate().save(tmp_path / "p.safetensors")
    policies = configured(
        tmp_path,
        f"""
        policies:
          - skip_policy: {{every: 2}}
          - error_linearizer: {{profile: {file}, granularity: channel}}
          - timestep_adjuster: {{phi: [1, 0.9, 1, 0.9, 1, 0.9, 1, 1], minimum: 0.5}}
        """,
    )
    assert [policy.name for policy in policies] == [
        "skip_policy", "error_linearizer", "timestep_adjuster"
    ]  # fmt: skip
    assert world.run(policies).trace.computed_steps == (0, 2, 4, 6, 7)


def test_a_skip_policy_swapped_in_from_a_configuration(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    file = world.calibrate().save(tmp_path / "p.safetensors")
    (recipe,) = configured(
        tmp_path,
        f"policies: [{{ertacache: {{profile: {file}, skip: {{skip_policy: {{evenly: 4}}}}}}}}]",
    )
    assert world.run([recipe]).trace.computed_steps == SkipPolicy(evenly=4).plan(8).computed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policies: [{ertacache: {cals: 5}}]", "cals"),
        ("policies: [{ertacache: {calls: many}}]", "calls"),
        ("policies: [{error_linearizer: {form: cubic}}]", "cubic"),
        ("policies: [{ertacache: {calls: 5, adjuster: {timestep_adjuster: {fom: x}}}}]", "fom"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, text)


# ------------------------------------------------------------------- what cannot work
def test_without_a_profile() -> None:
    with pytest.raises(PolicyError, match=r"SkipPolicy\(.*needs profile=.*erta calibrate"):
        Engine([ERTACache(calls=5)])
    with pytest.raises(PolicyError, match=r"ErrorLinearizer\(.*needs profile="):
        Engine([ERTACache(skip=SkipPolicy(every=2))])
    Engine([ERTACache(skip=SkipPolicy(every=2), linearizer=False)])  # this one needs none


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"no profile at .*gone.safetensors; make one with"):
        Engine([ERTACache(profile=tmp_path / "gone.safetensors", calls=5)])


def test_a_mismatch_is_refused_whichever_part_reads_it_first(world: SimpleNamespace) -> None:
    profile = world.calibrate(num_steps=9)
    for policy in (
        ERTACache(profile=profile, calls=5),
        ERTACache(profile=profile, skip=SkipPolicy(every=2)),
        ERTACache(profile=profile, skip=SkipPolicy(every=2), adjuster=True, linearizer=False),
    ):
        with pytest.raises(ProfileMismatchError, match="num_steps: profile '9' / run '8'"):
            world.run([policy])
