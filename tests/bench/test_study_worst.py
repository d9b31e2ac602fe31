"""The study of the worst samples: what it measures of a flow whose answer is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from erta_bench.studies._amplification import AccurateRuns, find_bend, fit_line, rank_correlation
from erta_bench.studies._worst_samples import FULL, PARTS, Followed
from erta_framework.calibration import Solution
from erta_framework.sampling import Sampler
from erta_framework.testing import AffineFlow


@pytest.mark.parametrize(("std", "part"), [(0.5, 0.0), (2.0, 0.0), (0.5, 0.5)])
def test_an_affine_flow_amplifies_every_difference_by_its_own_factor(std, part):
    sampler = Sampler(num_steps=40, batch_size=3)
    runs = AccurateRuns(sampler, AffineFlow((2, 3), std=std), ["a", "b", "c"])
    step = round(part * 40)
    sigma = sampler.schedule.sigmas[step]
    noise = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1))
    directions = [torch.eye(6)[k].reshape(1, 2, 3).expand(3, -1, -1) * 7 for k in (0, 4)]
    found = runs.amplify(noise, step, directions, runs.finish(noise, step))
    expected = std / math.hypot((1 - sigma) * std, sigma)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=2e-2, atol=0)


def test_the_bend_of_a_path_is_its_second_derivative_and_the_ends_have_that_of_their_neighbour():
    sigmas = (1.0, 0.7, 0.5, 0.0)
    path = torch.tensor([[[2.0 * s**2 + 5 * s - 1] for s in sigmas]])
    solution = Solution(sigmas, path, 0.0, substeps=2, calls=3)
    for step in (0, 1):  # x'' times half of both steps
        torch.testing.assert_close(find_bend(solution, step), torch.tensor([[-2.0 * 0.5]]))
    torch.testing.assert_close(find_bend(solution, 3), torch.tensor([[-2.0 * 0.7]]))


def test_correlation_is_of_ranks_and_the_line_says_what_it_explains():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(x, x.exp()) == pytest.approx(1.0)
    assert rank_correlation(x, -x.exp()) == pytest.approx(-1.0)
    assert fit_line(x, 3 - 2 * x) == pytest.approx((-2.0, 1.0))
    assert fit_line(x, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx((0.0, 0.0))


def test_a_worst_sample_is_described_by_its_place_and_by_what_the_amplification_explains():
    """The full run loses 20 dB for ten times the amplification; the other method has its own."""
    prompts = ["a", "b", "c", "d"]
    size = torch.tensor([1.0, 10.0, 100.0, 3.0])
    losing = 60 - 20 * size.log10()
    followed = Followed(
        SimpleNamespace(setting=SimpleNamespace(held_out=prompts)),
        sampler=SimpleNamespace(),
        solution=SimpleNamespace(),
        bends=dict.fromkeys(PARTS, size),
        random=size,
        quality={FULL: losing, "other": torch.tensor([30.0, 41.0, 42.0, 43.0])},
        early={FULL: torch.tensor([50.0, 50.0, 25.0, 50.0])},
        calls={FULL: 50, "other": 12},
    )
    full, other = map(followed.describe, followed.quality)
    assert (full["worst_sample"], full["worst_rank"]) == (2, 1)
    assert full["explained"] == pytest.approx(1.0)
    # had all been amplified alike, all would be as good as they are in the mean
    assert full["worst_alike"] == pytest.approx(full["psnr_fine_mean"])
    assert (full["early_mean"], full["early_worst"]) == (43.75, 25.0)
    assert (other["worst_sample"], other["worst_rank"]) == (0, 4)
    assert other["correlation_full"] == pytest.approx(-0.4)
    rows = list(followed.list_samples())
    assert [row["prompt"] for row in rows] == prompts
    assert [row["psnr_fine, other"] for row in rows] == [30.0, 41.0, 42.0, 43.0]
