"""What policies declare, merged: the order in which an engine lists them cannot matter."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import Engine, Needs, Policy, Seam, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.plugins import UNITS

SEAMS = st.frozensets(st.sampled_from(list(Seam)))
TRAITS = st.builds(
    Traits,
    requires=st.frozensets(st.sampled_from(["first_order", "epsilon", "signal:prompt"])),
    seams=SEAMS,
    memory=st.builds(Needs, evaluations=st.integers(0, 4), pairs=st.booleans()),
    decides=st.sampled_from(UNITS),
    static=st.booleans(),
    corrects_computed=st.booleans(),
    reads_latents=st.booleans(),
    reads_peers=st.booleans(),
    sees_every_branch=st.booleans(),
    collective=st.booleans(),
)


@given(TRAITS, TRAITS, TRAITS)
def test_merge_is_associative(a, b, c):
    left = Traits.merge([Traits.merge([a, b]), c])
    assert left == Traits.merge([a, Traits.merge([b, c])]) == Traits.merge([a, b, c])


@given(TRAITS, TRAITS)
def test_merge_is_commutative(a, b):
    assert Traits.merge([a, b]) == Traits.merge([b, a])


@given(TRAITS)
def test_merge_with_nothing_or_with_itself_changes_nothing(one):
    assert Traits.merge([one]) == one
    assert Traits.merge([one, one]) == one
    assert Traits.merge([one, Traits.merge([])]) == one


@given(TRAITS, TRAITS)
def test_merge_forgets_no_demand(a, b):
    both = Traits.merge([a, b])
    for one in (a, b):
        assert both.requires >= one.requires
        assert both.seams <= one.seams
        assert both.memory.evaluations >= one.memory.evaluations
        assert UNITS.index(both.decides) >= UNITS.index(one.decides)
        assert one.static or not both.static
        for name in ("corrects_computed", "reads_latents", "reads_peers", "collective"):
            assert getattr(both, name) >= getattr(one, name)


def test_traits_that_are_no_traits_are_refused():
    class Wrong(Policy):
        traits = {"static": True}  # noqa: RUF012

        @hookimpl
        def pre_step(self):
            return None

    with pytest.raises(PolicyError, match=r"the traits of .*Wrong\(\) are .*give a Traits"):
        Engine([Wrong()])


RENAMED = {
    "requires": frozenset({"first_order"}),
    "static": True,
    "seams": frozenset({Seam.LATENT}),
    "needs": Needs(evaluations=1),
    "per_sample": True,
    "per_branch": True,
    "revises": True,
    "agrees": True,
    "corrects_computed": True,
    "reads_latents": True,
    "copies": 2,
    "following": None,
}


@pytest.mark.parametrize("name", RENAMED)
def test_members_of_0_1_are_refused_with_what_replaces_them(name):
    with pytest.raises(PolicyError, match=rf"Old declares '{name}', which nothing reads .* write "):
        type("Old", (Policy,), {name: RENAMED[name]})


def test_a_property_of_0_1_is_refused_as_well():
    with pytest.raises(PolicyError, match="per_sample"):
        type("Old", (Policy,), {"per_sample": property(lambda self: True)})


def test_a_setting_may_have_the_name_of_a_member_of_0_1():
    class Copies(Policy):
        copies: int = 2

        @hookimpl
        def pre_step(self):
            return None

    assert [field.name for field in dataclasses.fields(Copies)] == ["copies"]
    assert Engine([Copies(copies=3)]).policies[0].copies == 3
