"""Ranks that share a sample, with a toy network whose every call waits for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

SCRIPT = "toy_worker.py"
PAIR = (
    "decisions",
    "inside",
    "static",
    "plans",
    "branches",
    "masks",
    "nonfinite",
    "mismatch",
    "bad_mask",
    "cfg_parallel",
    "cfg_refused",
    "groups",
    "pretenders",
)
Run = Callable[..., Any]


@pytest.fixture
def pair(ranks: Run) -> Any:
    """Two processes that ran all of these, one after another."""
    return ranks(SCRIPT, PAIR)


def test_ranks_that_want_different_steps_compute_the_same(pair: Any) -> None:
    first, second = pair("decisions")
    assert first["computed"] == second["computed"] == [0, 1, 3, 4, 6, 7]
    # what each wanted is in its trace: one was overruled at step 4, the other at step 3
    overruled = "another rank computes, wanted to reuse: wanted"
    assert [i for i, why in enumerate(first["reasons"]) if why == overruled] == [3]
    assert [i for i, why in enumerate(second["reasons"]) if why == overruled] == [4]
    one, other = pair.tensor("decisions.sample")
    assert torch.equal(one, other)
    assert torch.equal(one, pair.tensor("decisions.alone")[0])


def test_a_decision_costs_one_reduction_and_a_cold_step_none(pair: Any) -> None:
    for rank in pair("decisions"):
        assert rank["asked"] == [1, 2, 3, 4, 5, 6, 7]
        assert rank["votes"] == 7
        assert rank["handshakes"] == 1
        assert rank["beyond_the_network"] == 7 + 1
        assert rank["bytes"] == 7 * (2 + 3) + 10 * 8  # two flags and three samples; facts


def test_ranks_that_measure_different_values_inside_the_network_run_the_same_modules(
    pair: Any,
) -> None:
    for rank in pair("inside"):
        assert rank["steps"] == [0, 2, 4]  # one rank wanted 2, the other 4
        assert rank["votes"] == 3 * 5 + 5  # three blocks, five steps with something kept; decisions
        assert rank["broken"] == [0, 3]  # NaN of one is NaN for both: no reason to reuse
        assert rank["finite"]
        assert rank["static"] == [0, 2, 4]
        assert rank["static_sent"] == 2  # the plans are compared at each end, and at no step
    one, other = pair.tensor("inside.sample")
    assert torch.equal(one, other)
    assert torch.equal(one, pair.tensor("inside.alone")[0])


def test_a_static_schedule_is_compared_once_at_each_end(pair: Any) -> None:
    for rank in pair("static"):
        assert rank["rest"]
        assert rank["beyond_the_network"] == 0  # beside one reduction at each end
        calls = [0, 1, 1, 2, 2, 3, 3, 4]  # of the network, in the steps before
        assert rank["at_each_step"] == [1 + made for made in calls]
        assert rank["gathered"] == 0
        assert rank["handshakes"] == 2 * 2
        assert rank["bytes"] == 2 * (10 + 2) * 8  # five facts and a digest, and their negatives
        assert rank["computed"] == [0, 2, 4, 6, 7]
        assert rank["identical"]


def test_ranks_with_other_plans_are_told_both_at_the_start(pair: Any) -> None:
    for rank in pair("plans"):
        assert {found["kind"] for found in rank.values()} == {"AgreementError"}
        said = {name: found["error"] for name, found in rank.items()}
        for error in said.values():
            assert error.startswith("at the start of request 'toy': ")
        assert "rank 0: skip_policy computes steps 0 2 4 6 7 of 8" in said["schedule"]
        assert "rank 1: skip_policy computes steps 0 3 5" in said["schedule"]
        assert "Give every rank the same policies, profile and budget" in said["schedule"]
        first, _, second = said["settings"].partition("; rank 1: ")
        assert "rank 0: timestep_adjuster(" in first
        assert "phi=(0.9, " in first
        assert "phi=(0.8, " in second
        assert "rank 0: skip_policy computes" in said["voting"]
        assert "rank 1: its policies decide while sampling" in said["voting"]
        assert "rank 1: every step is computed" in said["none"]
        assert "the number of steps is" in said["steps"]


def test_a_policy_that_is_static_in_name_only_is_told_by_what_it_decided(pair: Any) -> None:
    for number, rank in enumerate(pair("pretenders")):
        as_many, fewer = rank["as_many"], rank["fewer"]
        assert as_many["kind"] == fewer["kind"] == "AgreementError"
        assert (
            "at the end of request 'toy': rank 0 reused and rank 1 computed at step 3"
            in (as_many["error"])
        )
        assert "all policies declare a static schedule (pretends)" in as_many["error"]
        # one rank waits in the network for a call that the other never makes
        assert "rank 0 computed and rank 1 reused at step 3" in fewer["error"]
        assert "Traits(static=True)" in fewer["error"]
        where = ("at step 6 of request 'toy': the network of rank 0", "at the end of request 'toy'")
        assert fewer["error"].startswith(where[number])
        assert fewer["seconds"] < 20


def test_branches_share_one_vote_unless_some_rank_decides_for_one(pair: Any) -> None:
    for rank in pair("branches"):  # only the second rank asked for a vote a branch, at step 3
        assert rank["asked"] == [1, 2, 3, 3, 4, 5, 6, 7]
        assert rank["votes"] == 8
        assert rank["computed"] == [0, 1, 6, 7]


def test_a_sample_is_reused_only_where_every_rank_would(pair: Any) -> None:
    for rank in pair("masks"):
        assert rank["rows"] == {
            **dict.fromkeys("0145670"),
            "2": [1, 2],  # wanted: 110 and 101
            "3": [1],  # wanted: 101 and 101
            "4": None,  # wanted: 011 and 100, so that all compute
        }
        assert rank["calls"] == 8
        assert rank["votes"] == 7
    one, other = pair.tensor("masks.sample")
    assert torch.equal(one, other)
    assert torch.equal(one, pair.tensor("masks.alone")[0])


def test_a_broken_output_of_one_rank_ends_all_of_them(pair: Any) -> None:
    first, second = pair("nonfinite")
    for rank in (first, second):
        assert rank["kind"] == "NonFiniteError"
        assert "at step 4 of request 'toy'" in rank["error"]
        assert "ranks 0, 1" in rank["error"]
        assert rank["calls"] == 7  # step 7 was reused and not recomputed by one rank alone
    assert first["last"] == ""
    assert "step 7 is not finite" in second["last"]


def test_ranks_of_another_schedule_or_batch_are_told_at_the_start(pair: Any) -> None:
    for number, rank in enumerate(pair("mismatch")):
        assert f"number of steps is {6 + number} on rank {number}, but from 6 to 7" in rank["steps"]
        assert f"batch size is {2 + number} on rank {number}, but from 2 to 3" in rank["rows"]
        assert "(ranks 0, 1)" in rank["rows"]


def test_a_mask_of_the_wrong_length_leaves_no_rank_waiting(pair: Any) -> None:
    for rank in pair("bad_mask"):
        assert rank["kind"] == "PolicyError"
        assert "mask of 1 samples for a batch of 3" in rank["error"]


@pytest.mark.parametrize(
    ("name", "computed"),
    [
        ("full", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("static", [0, 2, 4, 6, 7]),
        ("dynamic", [0, 1, 3, 4, 6, 7]),
    ],
)
def test_guidance_on_two_ranks_equals_guidance_on_one(
    pair: Any, name: str, computed: list[int]
) -> None:
    for number, rank in enumerate(pair("cfg_parallel")):
        assert rank[f"{name}_computed"] == computed
        assert rank[f"{name}_calls"] == len(computed)  # its own branch only
        assert rank[f"{name}_branches"] == [("cond", "uncond")[number]]
        assert rank["exchanges"] == 3 * 8
        assert rank["repr"] == "CFG(scale=3.0, start=0.0, stop=1.0, batched=False)"
    one, other = pair.tensor(f"cfg_parallel.{name}")
    assert torch.equal(one, other)
    assert torch.equal(one, pair.tensor(f"cfg_parallel.{name}_alone")[0])
    assert math.isfinite(float(one.sum()))


def test_guidance_that_cannot_be_divided_is_refused(pair: Any) -> None:
    for rank in pair("cfg_refused"):
        interval, batched, alone = rank["said"]
        assert "cannot divide CFG(scale=3.0, start=0.0, stop=0.5" in interval
        assert "batched=True" in batched
        assert "a group of 1, guidance has two branches" in alone


def test_groups_come_from_meshes_ranks_and_groups(pair: Any) -> None:
    for number, rank in enumerate(pair("groups")):
        both = [0, 1]
        assert rank["ranks"] == {
            "line": both,
            "own": both,
            "named": both,
            "both": both,
            "data": [number],
            "ranks": both,
            "group": both,
        }
        assert rank["same"]
        unnamed, unknown, strange, absent = rank["said"]
        assert "dimensions data, context; name those" in unnamed
        assert "no dimension 'tensor', it has data, context" in unknown
        assert "find_group got 'world'" in strange
        assert f"rank {number} is not among the ranks [{1 - number}]" in absent


@pytest.mark.slow
def test_without_an_agreement_the_rank_that_computes_waits_for_the_other(ranks: Run) -> None:
    first, second = ranks(SCRIPT, ["unagreed"])("unagreed")
    assert "imed out" in first["said"]
    assert second["said"] == ""


@pytest.mark.slow
def test_a_rank_that_hangs_or_dies_ends_the_others_with_a_clear_error(ranks: Run) -> None:
    run = ranks(SCRIPT, ["departures"], world=3, survivors=[0])
    (found,) = run("departures")
    for how, limit in {"late": 1, "dead": 10}.items():
        assert found[how]["kind"] == "AgreementError"
        error = found[how]["error"]
        assert "at step 3 of request 'toy': rank 0 did not hear from all ranks" in error
        assert "(ranks 0, 1)" in error
        assert f"a timeout of {limit} s" in error
        assert "start all ranks of the group again" in error
        assert found[how]["seconds"] < limit + 20  # not the 60 s of the group
    assert run.codes[1:] == [-9, -9]
    kind, notes = found["inside"]["kind"], found["inside"]["notes"]
    assert kind == "RuntimeError"  # what the network raised stays what it was
    assert notes == [
        "ranks 0, 2 compute together; if another of them failed or died, look at its log first",
        "raised by the network, branch 'cond' at step 3 of request 'toy'",
    ]


@pytest.mark.slow
def test_replicas_agree_within_themselves_and_run_different_numbers_of_steps(ranks: Run) -> None:
    run = ranks(SCRIPT, ["replicas", "cfg_context"], world=4)
    found = run("replicas")
    assert [rank["ranks"] for rank in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [rank["steps"] for rank in found] == [6, 6, 11, 11]
    for rank in found:
        reused = set(range(rank["steps"])) - set(rank["computed"])
        assert reused == {2, 5}
        assert rank["votes"] == rank["steps"] - 1
    samples, alone = run.tensor("replicas.sample"), run.tensor("replicas.alone")
    for one, reference in zip(samples, alone, strict=True):
        assert torch.equal(one, reference)
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[2], samples[3])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.slow
def test_branches_that_are_divided_again_agree_over_all_their_ranks(ranks: Run) -> None:
    run = ranks(SCRIPT, ["replicas", "cfg_context"], world=4)
    for rank in run("cfg_context"):
        assert rank["computed"] == [0, 1, 3, 4, 6, 7]
        assert rank["calls"] == 6
    for one, reference in zip(
        run.tensor("cfg_context.sample"), run.tensor("cfg_context.alone"), strict=True
    ):
        assert torch.equal(one, reference)
