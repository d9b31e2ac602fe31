"""Gates, ownership, rows, trials and composition of places inside a network."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from erta_framework import Engine, NoGuidance, Policy, Sampler, Seam, Traits, hookimpl
from erta_framework.errors import (
    CapabilityError,
    ConflictError,
    PolicyError,
    ProtocolError,
)
from erta_framework.modules import (
    KEEP,
    Cut,
    ModuleSeam,
    Named,
    PlaceFinder,
    ReuseKept,
    Select,
    select_places,
)
from erta_framework.testing import AffineFlow, BlockFlow
from module_plans import STEPS, Plan, every, gated, plan, sample

PLAIN = sample()


# ----------------------------------------------------------------------------- selections
@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (":", [0, 1, 2, 3]),
        ("1:", [1, 2, 3]),
        ("-2:", [2, 3]),
        (":-1", [0, 1, 2]),
        ("0.75:", [3]),
        (":0.5", [0, 1]),
        ("2", [2]),
        ("-1", [3]),
        ("9", []),
    ],
)
def test_depths_are_slices_and_fractions(depth, expected):
    assert list(Select(kind=("block",), depth=depth).depths(4)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": ("attn",)}, "'attn' is no kind to select"),
        ({"kind": ()}, "Select has no kind"),
        ({"kind": ("block",), "depth": "a:"}, "depth is 'a:'"),
        ({"kind": ("block",), "depth": ""}, "depth is empty"),
        ({"kind": ("block",), "stack": "("}, "is no regular expression"),
        ({"kind": ("mlp",), "span": True}, "a span is made of blocks"),
        ({"kind": ("block",), "pick": ""}, "pick is empty"),
        ({"kind": ("block",), "by_list": True}, "set span=True as well"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(fields, message):
    with pytest.raises(PolicyError, match=message):
        Select(**fields)


def test_a_cut_has_a_branch():
    with pytest.raises(PolicyError, match="branch of Cut is -1"):
        Cut(branch=-1)


class TwoLists(BlockFlow):
    """A toy whose blocks stand in two lists, of two blocks and of three."""

    def __init__(self):
        super().__init__(depth=5)
        self.more = self.blocks[2:]
        self.blocks = self.blocks[:2]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pick": "0"}, ["blocks.0"]),
        ({"pick": "-1"}, ["more.2"]),
        ({"stack": "more", "pick": "0"}, ["more.0"]),
        ({"stack": "more", "pick": "1:", "span": True}, ["more.1:more.2"]),
        ({"pick": "1:-1", "span": True}, ["blocks.1:more.1"]),
        ({"pick": "1:-1", "span": True, "by_list": True}, ["blocks.1:blocks.1", "more.0:more.1"]),
        ({"depth": "3:", "pick": "1", "span": True}, ["more.2:more.2"]),
    ],
)
def test_places_are_picked_of_those_that_were_found(fields, expected):
    found = select_places(TwoLists(), Select(kind=("block",), **fields), PlaceFinder())
    assert [place.path for place in found] == expected


def test_a_pick_of_nothing_says_how_many_there_were():
    with pytest.raises(CapabilityError, match="2 match, and none of them is picked; there are"):
        select_places(TwoLists(), Select(kind=("block",), depth=":2", pick="2:"), PlaceFinder())


def test_no_match_lists_what_there_is():
    message = r"cannot have Select.*nothing matches; there are 3 block in blocks, 3 attention"
    with pytest.raises(CapabilityError, match=message):
        sample(plan(every(2), "cross"))


def test_a_network_that_is_no_module_is_refused():
    with pytest.raises(CapabilityError, match=r"AffineFlow, no torch\.nn\.Module"):
        Sampler([plan(every(2), "mlp")]).sample(AffineFlow(), ["a"])


def test_a_driver_without_modules_is_refused(info):
    with pytest.raises(CapabilityError, match="requires modules, which"):
        Engine([plan(every(2), "mlp")]).session(info())


# ------------------------------------------------------------------------------ ownership
def test_two_owners_of_a_place_are_refused_by_name():
    one, other = plan(every(2), "attention"), plan(every(3), "attention", depth="1:")
    network = BlockFlow()
    message = r"blocks\.1\.attn of model has two owners: Plan.*and Plan"
    with pytest.raises(ConflictError, match=message):
        sample(one, other, network=network)
    assert gated(network) == []


def test_spans_may_not_overlap_each_other_nor_their_blocks():
    span = plan(every(2), "block", span=True, depth=":2")
    for other in (plan(every(2), "block", depth="0"), plan(every(2), "block", span=True)):
        with pytest.raises(ConflictError, match="has two owners"):
            sample(span, other)


def test_places_within_a_reused_span_only_age():
    ages = []

    def inner(step, call):
        found = [call.age(place) for place in call.sites]
        ages.append(found)
        return {
            p: KEEP if a is None else ReuseKept() for p, a in zip(call.sites, found, strict=True)
        }

    span = plan(every(3), "block", span=True)
    found = sample(span, plan(inner, "attention"), guidance=NoGuidance())
    assert ages == [[None] * 3, *([k] * 3 for k in range(1, STEPS))]
    steps = [step.calls[0].sites for step in found.trace.steps]
    assert steps[0] == {"span": (1, 0, 0), "attention": (3, 0, 0)}
    assert steps[1] == {"span": (0, 1, 0), "attention": (0, 0, 3)}
    assert steps[3] == {"span": (1, 0, 0), "attention": (0, 3, 0)}


class Faulty(Plan):
    """A plan with traits of its own."""

    own: Traits = Traits(seams=frozenset({Seam.MODULE}))

    @property
    def traits(self):
        return self.own


def test_what_a_policy_selects_must_fit_what_it_declares():
    with pytest.raises(PolicyError, match=r"its selects is empty"):
        Engine([Plan(make=every(2), selected=())])
    with pytest.raises(PolicyError, match=r"selects 'mlp'; give Select"):
        Engine([Plan(make=every(2), selected=("mlp",))])
    with pytest.raises(PolicyError, match=r"traits name no Seam\.MODULE"):
        Engine([Faulty(make=every(2), own=Traits())])
    with pytest.raises(PolicyError, match=r"keeps 0 outputs"):
        Engine([Plan(make=every(2), depth=0)])

    class Silent(Policy):
        traits = Traits(seams=frozenset({Seam.MODULE}))

        @property
        def selects(self):
            return (Select(kind=("mlp",)),)

        @hookimpl
        def pre_step(self):
            """Nothing."""

    with pytest.raises(PolicyError, match="has no assign with @hookimpl"):
        Engine([Silent()])


def test_places_that_are_never_assigned_are_reported():
    found = sample(plan(lambda _, call: {call.sites[0]: KEEP}, "mlp"))
    (paths,) = found.trace.unassigned.values()
    assert paths == ("blocks.1.mlp", "blocks.2.mlp")
    assert "owns 2 places that it never assigned an action: blocks.1.mlp" in found.trace.summary()


# ---------------------------------------------------------------------------------- gates
def make_seam(network, policy):
    owners = Engine([policy]).own_places("model", network, PlaceFinder())
    return ModuleSeam({"model": network}, {"model": owners})


def test_gates_at_rest_change_nothing_and_leave_nothing():
    network = BlockFlow()
    given = torch.randn(2, 3, 2, 4, 4), torch.full((2,), 400.0), torch.zeros(2, 3)
    plain = network(*given)
    with make_seam(network, plan(every(2), "attention", "mlp")):
        assert len(gated(network)) == 6
        assert torch.equal(network(*given), plain)
    assert gated(network) == []


def test_a_failed_install_takes_every_gate_off():
    network = BlockFlow()
    with make_seam(network, plan(every(2), "mlp", depth="2")):
        second = make_seam(network, plan(every(2), "attention", "mlp"))
        with pytest.raises(ConflictError, match=r"blocks\.2\.mlp of model .* is gated already"):
            second.install()
        assert gated(network) == ["blocks.2.mlp"]
    assert gated(network) == []


@pytest.mark.parametrize("kind", ["mlp", "block"])
def test_a_compiled_block_and_what_is_inside_it_are_reused_alike(kind):
    network = BlockFlow()
    network.blocks[1]._compiled_call_impl = network.blocks[1].forward  # as compile() sets it
    found = sample(plan(every(2), kind), network=network)
    assert torch.equal(found.sample, sample(plan(every(2), kind)).sample)
    assert gated(network) == ["blocks.1"]
    assert network.blocks[1]._compiled_call_impl == network.blocks[1].forward


def test_hooks_that_were_there_stay_beneath():
    network, calls = BlockFlow(), []
    mlp = network.blocks[0].mlp
    real = mlp.forward

    def offload(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    mlp.forward = offload
    sample(plan(every(2), "mlp"), network=network)
    assert vars(mlp)["forward"] is offload
    assert len(calls) == 2 * len(range(0, STEPS, 2))


def test_an_intruder_is_refused_by_name_and_everything_else_comes_off():
    network = BlockFlow()
    mlp = network.blocks[0].mlp
    seam = make_seam(network, plan(every(2), "mlp"))
    seam.install()
    ours = mlp.forward
    mlp.forward = lambda *args: ours(*args)
    with pytest.raises(ProtocolError, match=r"blocks\.0\.mlp\.forward of model .* was replaced by"):
        seam.remove()
    assert gated(network) == ["blocks.0.mlp"]
    assert mlp(torch.zeros(1, 4, 8)).shape == (1, 4, 8)


def test_an_intruder_in_the_middle_of_a_request_is_noticed_at_the_next_call():
    network = BlockFlow()

    def make(step, call):
        if step.index == 1:
            inner = network.blocks[2].mlp.forward
            network.blocks[2].mlp.forward = lambda *args: inner(*args)
        return {}

    with pytest.raises(ProtocolError, match=r"put hooks on first, and remove them last"):
        sample(plan(make, "mlp"), network=network)


def test_an_exception_leaves_nothing(recwarn):
    network = BlockFlow()

    class Boom(Exception):
        pass

    def explode(*_):
        if len(seen) > 4:
            raise Boom
        seen.append(1)

    seen: list[int] = []
    handle = network.blocks[2].mlp.register_forward_pre_hook(explode)
    policy = plan(every(2), "attention")
    with pytest.raises(Boom):
        sample(policy, network=network)
    handle.remove()
    assert gated(network) == []
    again, fresh = sample(policy, network=network), sample(plan(every(2), "attention"))
    assert torch.equal(again.sample, fresh.sample)


def test_a_copied_network_is_driven_by_nobody():
    network = BlockFlow()
    copies = []

    def make(step, call):
        if step.index == 3:
            copies.append(copy.deepcopy(network))
        return every(2)(step, call)

    sample(plan(make, "mlp"), network=network)
    given = torch.randn(2, 3, 2, 4, 4), torch.full((2,), 400.0), torch.zeros(2, 3)
    assert torch.equal(copies[0](*given), network(*given))
    first = copies[0].blocks[0].mlp
    assert vars(first)["_erta_gate"].run.__self__ is first


def test_another_thread_runs_the_modules_and_touches_no_cell():
    network = BlockFlow()
    given = torch.randn(2, 3, 2, 4, 4), torch.full((2,), 400.0), torch.zeros(2, 3)
    plain, beside = network(*given), []

    def make(step, call):
        return every(2)(step, call)

    def elsewhere(*_):
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: beside.append(network(*given)))
            thread.start()
            thread.join()

    handle = network.head.register_forward_pre_hook(elsewhere)
    found = sample(plan(make, "attention"), network=network)
    handle.remove()
    assert len(beside) == 2 * STEPS
    assert all(torch.equal(output, plain) for output in beside)
    assert torch.equal(found.sample, sample(plan(every(2), "attention")).sample)


def test_ranks_that_agree_on_steps_take_static_plans_and_those_that_ask():
    class Agreeing(Policy):
        traits = Traits(collective=True)

        @hookimpl
        def pre_step(self):
            """Nothing."""

    dynamic = plan(every(2), "mlp")
    with pytest.raises(ConflictError, match="decides inside the network while sampling"):
        Engine([Agreeing(), dynamic])
    seams = frozenset({Seam.MODULE})
    Engine([Agreeing(), Faulty(make=every(2), own=Traits(agrees_inside=True, seams=seams))])
    static = Faulty(make=every(2), own=Traits(static=True, seams=frozenset({Seam.MODULE})))
    Engine([Agreeing(), static])


# ------------------------------------------------------------------------ modules by name
def test_modules_are_selected_by_their_names():
    def make(step, call):
        assert [(place.path, place.kind, place.depth) for place in call.sites] == [
            ("blocks.1.mlp.up", "named", -1),
            ("blocks.2.mlp.up", "named", -1),
        ]
        return every(2)(step, call)

    policy = Plan(make=make, selected=(Named(path="blocks.[12].mlp.up"),))
    trace = sample(policy).trace
    assert trace.steps[1].calls[0].sites == {"named": (0, 2, 0)}
    # a part of another policy's place may have an owner of its own
    beside = sample(policy, plan(every(2), "mlp")).trace
    assert beside.steps[1].calls[0].sites == {"named": (0, 0, 2), "mlp": (0, 3, 0)}


def test_names_that_are_not_there_and_expressions_that_cannot_be_read_are_refused():
    missing = Plan(make=every(2), selected=(Named(path="mlp"),))
    with pytest.raises(CapabilityError, match="nothing matches; its parts are embed, blocks, head"):
        sample(missing)
    with pytest.raises(PolicyError, match="is no regular expression"):
        Named(path="(")
    with pytest.raises(PolicyError, match="'named' is no kind to select"):
        Select(kind=("named",))
