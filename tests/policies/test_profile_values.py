"""Profilers refuse NaN where it comes up; what was published passes the checks of profiles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import erta_integrations.shapes_wan
from erta_framework import CFG, NoGuidance, Policy, Sampler
from erta_framework.calibration import find_period
from erta_framework.errors import NonFiniteError, ProfileError
from erta_framework.testing import AffineFlow
from erta_policies.constants import models, read_published
from erta_policies.ertacache import ReplayProfiler, ResidualProfiler, SkipPolicy
from erta_policies.fitted import FittedProfiler
from erta_policies.magcache import MagCacheProfiler
from erta_policies.meancache import MeanCacheProfiler
from erta_policies.prompttea import CodebookProfiler, RegressionProfiler
from erta_policies.sencache import SensitivityProfiler
from erta_policies.teacache import TeaCacheProfiler

PROFILERS: list[Policy] = [
    ResidualProfiler(),
    ReplayProfiler(threshold=0.1),
    MagCacheProfiler(),
    TeaCacheProfiler(signal="latents"),
    MeanCacheProfiler(),
    RegressionProfiler(signal="latents"),
    CodebookProfiler(),
    FittedProfiler(),
    SensitivityProfiler(),
]


class Overflow(AffineFlow):
    """A network that gives NaN for one prompt from one time on."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        encoded: Tensor = super().encode(prompts)
        self.broken = torch.tensor([prompt == "broken" for prompt in prompts])
        return encoded

    def __call__(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        output: Tensor = super().__call__(x, timestep, condition)
        if float(timestep[0]) <= 500.0:
            output[self.broken[: len(output)]] = torch.nan  # the empty prompts follow
        return output


@pytest.mark.parametrize("profiler", PROFILERS, ids=lambda profiler: profiler.name)
def test_a_sample_that_turns_nan_is_named_with_its_step(profiler: Policy) -> None:
    sampler = Sampler(num_steps=8, guidance=CFG(scale=2.0), accelerator="cpu", batch_size=4)
    prompts = ["fine", "broken", "good", "well"]
    with pytest.raises(NonFiniteError) as caught:
        sampler.calibrate(Overflow(), prompts, profiler=profiler)
    said = r"got NaN or infinity .* sample ([\d, ]+) of \d+ \('broken'\), at step (\d)"
    named = re.search(said, str(caught.value))
    assert named, str(caught.value)
    first = next(k for k, time in enumerate(sampler.schedule.times) if time <= 500.0)
    assert (named[1].split(", ")[0], named[2]) == ("1", str(first))
    # and the same samples without it are a profile
    assert sampler.calibrate(AffineFlow(), prompts, profiler=profiler).samples == 4


def test_the_ratios_that_were_published_have_no_period() -> None:
    for model in models("magcache"):
        for name, ratios in read_published("magcache", model)["tables"].items():
            assert all(0.0 < ratio < float("inf") for ratio in ratios), (model, name)
            assert find_period([abs(ratio - 1.0) for ratio in ratios]) is None, (model, name)


def test_the_codebooks_that_were_published_have_no_period() -> None:
    for model in models("prompttea"):
        assert find_period(read_published("prompttea", model).get("codebook", [])) is None, model


def test_the_profile_that_comes_with_the_package_passes() -> None:
    folder = Path(erta_integrations.shapes_wan.__file__).parent
    path = folder / "weights/shapes-wan-50.profile.safetensors"
    SkipPolicy(profile=path, calls=17).prepare()


def test_a_network_behind_another_cache_gives_no_profile() -> None:
    class Cached(AffineFlow):
        """Computes at every fifth call of a branch, and repeats its residual between."""

        asked = 0

        def __call__(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
            if self.asked % 5 == 0:
                self.residual = super().__call__(x, timestep, condition) - x
            self.asked += 1
            return x + self.residual

    sampler = Sampler(num_steps=50, guidance=NoGuidance(), accelerator="cpu")
    for profiler in (ResidualProfiler(), MagCacheProfiler()):
        with pytest.raises(ProfileError, match="recurs every 5 steps: another cache skipped"):
            sampler.calibrate(Cached(), ["a cat"], profiler=profiler)
        assert sampler.calibrate(AffineFlow(), ["a cat"], profiler=profiler).samples == 1
