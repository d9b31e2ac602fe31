"""What a profile's tensors must satisfy, and the sawtooth that another cache leaves in them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind, StepSeries, find_period
from erta_framework.errors import ProfileError

KIND = ProfileKind(
    "toy",
    {
        "samples": Entry(shape="b T", counts=True),
        "ratio": Entry(shape="b T"),
        "share": Entry(shape="b T T", part_of="samples"),
        "grid": Entry(shape="T+1", least=None, monotone="weak"),
        "fit": Entry(shape="b C C", least=None, most=5.0),
        "later": Entry(shape="", optional=True),
    },
    StepSeries("ratio", "samples", about=1.0),
)
STEPS = 40


def make(**changes: torch.Tensor) -> Profile:
    """A profile of 2 samples, 2 branches and 40 steps that is as it must be."""
    statistics = {
        "samples": torch.full((2, STEPS), 2.0),
        "ratio": torch.full((2, STEPS), 2.0),
        "share": torch.ones(2, STEPS, STEPS),
        "grid": torch.linspace(2.0, 0.0, STEPS + 1),
        "fit": -torch.ones(2, 3, 3),
    }
    held = {name: value.double() for name, value in statistics.items()} | changes
    facts = {"num_steps": str(STEPS), "branches": "cond,uncond"}
    return Profile("toy", facts, held, samples=2)


def changed(name: str, place: tuple[int, ...], value: float) -> Profile:
    tensor = make().statistics[name].clone()
    tensor[place] = value
    return make(**{name: tensor})


def test_a_profile_as_it_must_be() -> None:
    assert KIND.check(make()).samples == 2
    assert KIND.check(make(later=torch.tensor(1.0).double(), more=torch.ones(3)))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (changed("ratio", (1, 7), math.nan), "'ratio' of this toy profile is nan at branch 'unco"),
        (changed("ratio", (0, 3), math.inf), "is inf at branch 'cond', step 3, it must be a f"),
        (changed("ratio", (0, 3), -1e-9), "is -1e-09 at branch 'cond', step 3, it must be at l"),
        (changed("samples", (0, 0), 1.5), "is 1.5 at branch 'cond', step 0, it must be a whole"),
        (changed("share", (1, 0, 4), 2.1), "is 2.1 at branch 'uncond', step 0, step 4, it must"),
        (changed("grid", (5,), 9.0), r"'grid' .* rises at some steps and falls or stays at"),
        (changed("fit", (0, 1, 2), 6.0), "is 6 at branch 'cond', C 1, C 2, it must be at most 5"),
        (make(ratio=torch.ones(2, STEPS)), r"'ratio' .* torch.float32, it must be torch"),
        (make(ratio=torch.ones(2, 9).double()), r"\[2, 9\], it must be \[b, T\] with b = 2"),
        (make(ratio=torch.ones(STEPS).double()), r"has shape \[40\], it must be \[b, T\]"),
        (make(fit=torch.ones(2, 3, 4).double()), r"has shape \[2, 3, 4\], it must be \[b, C, C\]"),
        (make(fit=torch.ones(2, 0, 0).double()), r"has shape \[2, 0, 0\]"),
        (make(later=torch.ones(1).double()), r"has shape \[1\], it must be \[\]"),
        (replace(make(), statistics={}), "this toy profile has no 'samples', it holds nothing"),
        (replace(make(), fingerprint={}), "has 'nothing' as num_steps"),
        (replace(make(), fingerprint={"num_steps": "9" * 5000}), "as num_steps, not a number"),
        (replace(make(), fingerprint={"num_steps": "0"}), "has '0' as num_steps"),
        (replace(make(), fingerprint={"num_steps": "²"}), "has '²' as num_steps"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_place_and_the_rule(profile: Profile, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        KIND.check(profile)


@pytest.mark.parametrize("rule", [{"finite": False, "least": None}, {"finite": False}])
def test_infinities_may_be_allowed_and_nan_only_where_any_value_is(rule: dict[str, object]) -> None:
    kind = ProfileKind("toy", {"x": Entry(shape="n", **rule)})  # type: ignore[arg-type]
    infinite = torch.tensor([math.inf]).double()
    kind.check(make(x=infinite))
    if "least" in rule:
        kind.check(make(x=infinite * 0))
    else:
        with pytest.raises(ProfileError, match="is nan at n 0, it must be at least 0"):
            kind.check(make(x=infinite * 0))


def test_a_grid_may_stand_still_where_it_is_weakly_monotone() -> None:
    for rule, fits in (("weak", True), ("strict", False)):
        kind = ProfileKind("toy", {"x": Entry(shape="n", monotone=rule)})  # type: ignore[arg-type]
        for grid in ([3.0, 2.0, 2.0, 1.0], [1.0, 1.0, 4.0, 5.0]):
            profile = make(x=torch.tensor(grid).double())
            if fits:
                kind.check(profile)
            else:
                with pytest.raises(ProfileError, match="falls or stays"):
                    kind.check(profile)


# ------------------------------------------------------------------------------- the sawtooth
def sawtooth(period: int, teeth: float, steps: int = STEPS, phase: int = 0) -> list[float]:
    """Changes around 1 whose every n-th is so many times as large."""
    chance = random.Random(period)
    return [
        chance.uniform(0.9, 1.1) * (teeth if step % period == phase else 1.0)
        for step in range(steps)
    ]


@pytest.mark.parametrize("period", range(3, 9))
@pytest.mark.parametrize("phase", [0, 1])
def test_a_sawtooth_is_found(period: int, phase: int) -> None:
    assert find_period(sawtooth(period, 12.0, 50, phase)) == period
    # what a cache of the whole network leaves: no change at all between two steps
    exact = [float(step % period == phase) for step in range(50)]
    assert find_period(exact) == period


def test_a_cache_that_warms_up_first_is_found_as_well() -> None:
    assert find_period([9.0] * 10 + sawtooth(5, 12.0)) == 5
    assert find_period([math.nan, *sawtooth(5, 12.0)]) == 5


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [0.0] * 50,
        [math.nan] * 50,
        [1.0] * 50,
        [0.5**step for step in range(50)],
        [1 / (50 - step) for step in range(50)],
        [100.0 * (step in (0, 20, 49)) + 1 for step in range(50)],
        sawtooth(5, 2.5, 50),
        sawtooth(5, 12.0, 20),
        sawtooth(2, 30.0, 50),
    ],
    ids=["none", "zero", "unknown", "even", "falling", "rising", "peaks", "ripple", "few", "two"],
)  # fmt: skip
def test_other_shapes_are_none(changes: list[float]) -> None:
    assert find_period(changes) is None


def test_noise_is_no_sawtooth() -> None:
    chance = random.Random(0)
    for _ in range(500):
        assert find_period([abs(chance.gauss(0, 1)) for _ in range(50)]) is None


@pytest.mark.parametrize("branch", [0, 1])
def test_a_profile_with_a_sawtooth_is_refused(branch: int) -> None:
    ratio = make().statistics["ratio"].clone()
    ratio[branch] = 2 * (1 + 0.01 * torch.tensor(sawtooth(5, 12.0)).double())
    with pytest.raises(ProfileError, match=r"'ratio' .* recurs every 5 steps: another cache"):
        KIND.check(make(ratio=ratio))


def test_pairs_of_steps_are_read_at_neighbours() -> None:
    kind = ProfileKind("toy", {}, StepSeries("share", "samples"))
    share = torch.rand(2, STEPS, STEPS, generator=torch.Generator().manual_seed(0)).double()
    kind.check(make(share=share))
    for step, change in enumerate(sawtooth(4, 12.0)[1:]):
        share[1, step, step + 1] = change
    with pytest.raises(ProfileError, match="recurs every 4 steps"):
        kind.check(make(share=share))
