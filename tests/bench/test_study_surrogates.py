"""The study of surrogates compares them at the same decisions."""

from __future__ import annotations

import pytest
import torch

from erta_bench.studies import STUDIES
from erta_bench.studies._surrogates import Decisions, SameDecisions
from erta_policies.fastcache import DriftGate, SurrogateProfiler
from module_plans import STEPS, sample

PROFILE = sample(SurrogateProfiler()).emitted[0]


def test_decisions_are_repeated_whatever_stands_in():
    decisions = Decisions()
    noted = sample(SameDecisions(threshold=0.4, decisions=decisions))
    assert torch.equal(noted.sample, sample(DriftGate(threshold=0.4)).sample)
    taken = dict(decisions.taken)
    assert {any(reuse) for reuse in taken.values()} == {True, False}
    decisions.replay = True
    ridge = sample(
        SameDecisions(threshold=0.4, decisions=decisions, surrogate="ridge", profile=PROFILE)
    )
    assert decisions.taken == taken
    assert ridge.trace.work == noted.trace.work
    assert not torch.equal(ridge.sample, noted.sample)


def test_the_products_of_the_fit_are_counted():
    """2 C C a token, for every sample and block that is replaced, of a call's operations."""
    decisions = Decisions()
    sample(SameDecisions(threshold=0.4, decisions=decisions))
    assert decisions.fit_work == 0.0
    decisions.replay = True
    ridge = SameDecisions(threshold=0.4, decisions=decisions, surrogate="ridge", profile=PROFILE)
    whole = sample(ridge)
    replaced = sum(sum(reuse) for reuse in decisions.taken.values())
    tokens, width, depth = 32, 8, 3
    # of a block: 2 x 3 C C for qkv, 2 x 2 N C for attention, 2 x 4 C C for the MLP
    call = 2 * tokens * (depth * (7 * width**2 + 2 * tokens * width) + 2 * 3 * width)
    expected = replaced * tokens * 2 * width**2 / (2 * call)
    assert decisions.fit_work == pytest.approx(expected, rel=0.05)
    assert whole.trace.work < 2 * 2 * STEPS


def test_it_is_listed():
    study = STUDIES["surrogates"]
    assert study.models == ("shapes-wan", "shapes-flux")
    assert {"threshold", "work", "fit_work", "psnr_mean"} <= set(study.columns)
