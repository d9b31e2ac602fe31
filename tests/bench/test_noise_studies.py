"""The studies of FEB-Cache: what they compute of a run, and the tables that show it."""

from __future__ import annotations

import pytest
import torch

from erta_bench.studies._module_tables import find_full_steps, spell
from erta_bench.studies._noise_scale import Lengths, NoiseWatch, list_factors, read_noise
from erta_framework import Engine, SamplingLoop
from erta_framework.errors import CapabilityError
from erta_framework.session import Guided
from erta_framework.testing import toy_profile
from erta_framework.testing._setup import BLOCKS
from erta_policies.febcache import FEBCacheProfiler, ModuleTable, StateTable
from erta_policies.noise_scale import NoiseScale


@pytest.mark.parametrize("factor", [0.5, 0.98, 1.0, 1.3])
def test_the_length_of_scaled_noise_and_the_factor_that_undoes_it(factor):
    full, found = torch.randn(4, 3, 5), Lengths()
    found.add(full, factor * full)
    means = found.describe()
    assert means["length"] == pytest.approx(factor)
    assert means["factor"] == pytest.approx(1 / factor)
    assert means["error"] == pytest.approx(abs(factor - 1), abs=1e-6)
    assert means["left"] == pytest.approx(0.0, abs=1e-6)


def test_the_best_factor_leaves_what_is_at_right_angles():
    full, found = torch.tensor([[1.0, 0.0]]), Lengths()
    found.add(full, torch.tensor([[1.0, 1.0]]))
    assert found.describe()["factor"] == pytest.approx(0.5)
    assert found.describe()["left"] == pytest.approx(0.5**0.5)


def watch(table):
    found = NoiseWatch(guidance=BLOCKS.guidance, steps=(1, 2, 7))
    loop = SamplingLoop(Engine([found, ModuleTable(table=table)]), BLOCKS.solver, BLOCKS.guidance)
    loop.run(BLOCKS.toy(), BLOCKS.request())
    return {part: lengths.describe() for part, lengths in found.found.items()}


def test_without_reuse_the_watch_sees_no_difference_and_with_it_one():
    for part in watch("N" * 10).values():
        assert part["length"] == pytest.approx(1.0, abs=1e-6)
        assert part["error"] < 1e-6
    changed = watch("NBBNNNNBNN")
    assert list(changed) == ["first 60 %", "last 40 %"]
    assert all(part["error"] > 1e-4 for part in changed.values())


def test_noise_is_read_from_noise_and_velocities_alone():
    clean, noise = torch.randn(2, 1, 3)
    guided = Guided(0.7 * clean + 0.3 * noise, noise - clean, 0.7, 0.3)
    torch.testing.assert_close(read_noise(noise - clean, guided, "velocity"), noise)
    assert read_noise(noise, guided, "epsilon") is noise
    with pytest.raises(CapabilityError, match="'v_prediction'"):
        read_noise(noise, guided, "v_prediction")


def test_every_factor_is_tried_with_its_reciprocal():
    tried = dict(list_factors(50))
    for factor, other in zip(
        tried["published b(t)"].factors(50), tried["1 / b(t)"].factors(50), strict=True
    ):
        assert factor * other == pytest.approx(1.0)
    assert tried["1.00"].factors(1) == NoiseScale(scale=1.0).factors(1)


def test_an_even_table_has_the_steps_that_the_work_allows():
    profile = toy_profile(FEBCacheProfiler(rounds=1, tolerance=1.0), seeds=(1,))
    for work in (0.4, 0.7):
        full = find_full_steps(profile, work)
        both = float(profile.statistics["shares"][2] / profile.statistics["calls"][0])
        assert 1 - both * (10 - full) / 10 == pytest.approx(work, abs=0.05)
    assert spell(StateTable("NBBAM")) == "1N 2B 1A 1M"
