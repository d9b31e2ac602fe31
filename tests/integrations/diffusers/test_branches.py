"""Branches are told apart by name or by conditioning, never by counting."""

from __future__ import annotations

from typing import Any

import pytest

from erta_integrations.diffusers.pipeline._branches import Branches
from tiny_pipelines import drawn

COND, UNCOND = drawn(1, 4, 8, seed=1), drawn(1, 4, 8, seed=2)


def names(steps: list[list[dict[str, Any]]]) -> list[list[str]]:
    branches, found = Branches(), []
    for step in steps:
        branches.begin_step()
        found.append([branches.name(None, arguments)[0] for arguments in step])
    return found


@pytest.mark.parametrize("copied", [False, True], ids=["same-storage", "equal-values"])
def test_a_missing_branch_shifts_no_other(copied: bool) -> None:
    def call(tensor: Any) -> dict[str, Any]:
        value = tensor.clone() if copied else tensor
        return {"hidden_states": drawn(1), "encoder_hidden_states": value}

    both = [call(COND), call(UNCOND)]
    assert names([both, [call(UNCOND)], [call(COND)], both, both[::-1]]) == [
        ["call0", "call1"],
        ["call1"],
        ["call0"],
        ["call0", "call1"],
        ["call1", "call0"],
    ]


def test_equal_prompts_are_still_two_branches() -> None:
    call = {"encoder_hidden_states": COND}
    assert names([[call, call]] * 2) == [["call0", "call1"]] * 2


@pytest.mark.parametrize("extra", [{"skip_layers": [3]}, {"skip_layers": (3,)}])
def test_skipped_layers_make_a_branch(extra: dict[str, Any]) -> None:
    plain = {"encoder_hidden_states": COND, "skip_layers": None}
    perturbed = {"encoder_hidden_states": COND, **extra}
    assert names([[plain], [plain, perturbed], [perturbed]]) == [
        ["call0"],
        ["call0", "call1"],
        ["call1"],
    ]


def test_nested_and_listed_conditioning() -> None:
    def call(tensor: Any) -> dict[str, Any]:
        return {"cap_feats": [tensor, tensor], "added_cond_kwargs": {"text_embeds": tensor}}

    assert names([[call(COND), call(UNCOND)], [call(UNCOND)]]) == [["call0", "call1"], ["call1"]]


def test_calls_without_conditioning_go_by_place() -> None:
    call = {"sample": drawn(1)}
    assert names([[call, call], [call]]) == [["call0", "call1"], ["call0"]]


def test_a_name_given_by_the_pipeline_is_taken() -> None:
    branches = Branches()
    branches.begin_step()
    assert branches.name("uncond", {}) == ("uncond", False)
    assert branches.name("cond", {}) == ("cond", False)
    assert branches.name("cond", {}) == ("cond#2", True)
    branches.begin_step()
    assert branches.name("cond", {}) == ("cond", False)


def test_a_call_that_looks_like_an_earlier_one_of_the_step_is_a_repeat() -> None:
    branches = Branches()
    branches.begin_step()
    assert branches.name(None, {"encoder_hidden_states": COND}) == ("call0", False)
    assert branches.name(None, {"encoder_hidden_states": UNCOND}) == ("call1", False)
    assert branches.name(None, {"encoder_hidden_states": COND}) == ("call2", True)


def test_a_mode_is_part_of_a_branch() -> None:
    fill = {"encoder_hidden_states": COND, "mode": "extract"}
    read = {"encoder_hidden_states": COND, "mode": "cached"}
    assert names([[fill], [read], [read], [fill]]) == [["call0"], ["call1"], ["call1"], ["call0"]]
    branches, found = Branches(), []
    for arguments in (fill, read, read, {"isolate": True}, fill):
        branches.begin_step()
        found.append(branches.name("cond", arguments)[0])
    read_name, isolated = "cond(mode=cached)", "cond(isolate=True, mode=None)"
    assert found == ["cond", read_name, read_name, isolated, "cond"]


def test_numbers_that_change_make_no_branch() -> None:
    calls = [{"encoder_hidden_states": COND, "scale": k / 2, "step": k} for k in range(3)]
    assert names([[call] for call in calls]) == [["call0"]] * 3


def test_each_shape_of_latents_has_a_name() -> None:
    branches = Branches()
    shapes = [(1, 6), (1, 4), (1, 6), (1, 4), (1, 2)]
    found = [branches.name_shape("transformer", "cond", shape) for shape in shapes]
    assert found == ["cond", "cond@2", "cond", "cond@2", "cond@3"]
    assert branches.name_shape("transformer_2", "cond", (1, 4)) == "cond"
    branches.clear()
    assert branches.name_shape("transformer", "cond", (1, 4)) == "cond"
