"""Scores of tokens against the formula, written out in loops, and their ages."""

from __future__ import annotations

import pytest
import torch

from erta_framework.errors import PolicyError
from erta_policies.shared import TokenScore
from erta_policies.shared._token_score import TokenAges, mark_best, read_token_grid


def test_the_score_is_the_formula():
    draw = torch.Generator().manual_seed(0)
    kept = torch.randn(2, 16, 5, generator=draw)
    ages = torch.randint(0, 5, (2, 16), generator=draw)
    found = TokenScore(age_weight=0.25, age_scale=4, spread=0.6, cell=2).score(
        kept, ages=ages, grid=(2, 4)
    )
    for b in range(2):
        norms = [float(kept[b, n].norm()) for n in range(16)]
        length = sum(x * x for x in norms) ** 0.5
        plain = [norms[n] / length + 0.25 * float(ages[b, n]) / 4 for n in range(16)]
        wanted = list(plain)
        for frame in range(2):
            for column in range(2):
                # a cell of 2 x 2 of a frame of 2 x 4
                first = frame * 8 + column * 2
                cell = [first, first + 1, first + 4, first + 5]
                best = max(cell, key=lambda n: plain[n])
                wanted[best] += 0.6 * plain[best]
        torch.testing.assert_close(found[b], torch.tensor(wanted))


def test_tokens_are_chosen_for_each_sample_and_do_not_depend_on_the_others():
    kept = torch.tensor([[[1.0], [5.0], [2.0]], [[9.0], [0.0], [9.0]]])
    score = TokenScore()
    assert score.choose(kept, count=2).tolist() == [[1, 2], [0, 2]]
    assert score.choose(kept[1:], count=1).tolist() == [[0]]
    assert score.choose(torch.zeros(1, 3, 4), count=1).tolist() == [[0]]


def test_age_brings_every_token_to_its_turn():
    kept = torch.tensor([[[4.0], [3.0], [2.0], [1.0]]])
    score, ages, seen = TokenScore(age_weight=1.0, age_scale=1.0), TokenAges(), []
    for _ in range(4):
        now = ages.read(kept, 1, [0], [0])
        chosen = score.choose(kept, count=1, ages=now)
        ages.advance(chosen, [0])
        seen.append(int(chosen))
    assert seen == [0, 1, 2, 3]


def test_ages_begin_anew_where_a_sample_ran_whole():
    kept, ages = torch.ones(2, 3, 1), TokenAges()
    ages.read(kept, 2, [0, 0], [0, 1])
    ages.advance(torch.tensor([[0], [2]]), [0, 1])
    assert ages.read(kept, 2, [0, 0], [0, 1]).tolist() == [[0, 1, 1], [1, 1, 0]]
    ages.advance(torch.tensor([[1]]), [1])  # on one sample alone
    assert ages.read(kept, 2, [0, 0], [0, 1]).tolist() == [[0, 1, 1], [2, 0, 1]]
    assert ages.read(kept[1:], 2, [4], [1]).tolist() == [[0, 0, 0]]
    assert ages.read(kept, 2, [0, 4], [0, 1]).tolist() == [[0, 1, 1], [0, 0, 0]]


def test_the_grid_is_read_off_the_latents():
    assert read_token_grid(torch.zeros(1, 4, 6, 10), 1, 60) == (6, 10)
    assert read_token_grid(torch.zeros(1, 4, 6, 10), 1, 15) == (3, 5)
    assert read_token_grid(torch.zeros(1, 4, 3, 6, 10), 1, 45) == (3, 5)
    assert read_token_grid(torch.zeros(1, 4, 6, 10), 1, 61) is None
    assert read_token_grid(torch.zeros(1, 60, 4), 2, 60) is None


def test_a_grid_that_does_not_fit_is_refused():
    spread, kept = TokenScore(spread=0.5), torch.ones(1, 12, 2)
    for grid, shown in ((None, "not known"), ((3, 4), "3 x 4"), ((2, 4), "2 x 4")):
        with pytest.raises(PolicyError, match=shown):
            spread.score(kept, grid=grid)
    assert spread.score(kept, grid=(2, 6)).shape == (1, 12)
    assert TokenScore(spread=0.5, grid=(2, 6)).score(kept).shape == (1, 12)
    assert mark_best(torch.zeros(1, 4), (2, 2), 1).tolist() == [[0.0] * 4]


@pytest.mark.parametrize(
    "settings", [{"age_weight": -1.0}, {"age_scale": 0.0}, {"spread": -0.1}, {"cell": 0}]
)
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(PolicyError, match="token score"):
        TokenScore(**settings)
