"""Constant branches: what counts as the same input, and what is computed once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from erta_framework.config import build_policies, options_of
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Named
from erta_framework.testing import BlockFlow
from erta_policies.constant_branches import ConstantBranches
from erta_policies.constant_branches._inputs import Inputs
from module_plans import STEPS, request, sample, visits

BOTH = pytest.mark.parametrize("copies", [False, True])


class Text(BlockFlow):
    """A toy that also embeds its condition, in a way that a test chooses."""

    def __init__(self, prepare=lambda shift: shift):
        super().__init__()
        torch.manual_seed(0)
        self.text = nn.Linear(3, 3).requires_grad_(False).eval()
        self.value = nn.Linear(3, 3).requires_grad_(False).eval()
        self.prepare = prepare

    def _predict(self, x, sigma, shift):
        flat = self.prepare(self.condition)
        extra = self.value(self.text(flat).unsqueeze(0)[0]).mean()
        return super()._predict(x, sigma, shift) + 0.01 * extra

    def __call__(self, x, time, cond):
        self.condition = cond
        return super().__call__(x, time, cond)


class Counted(nn.Module):
    """A module inside of another, so that no gate answers for it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def count(policy, prepare=lambda shift: shift):
    """Runs of both projections; the samples must be those of the untouched toy."""
    network, given = Text(prepare), request()
    for name in ("text", "value"):
        setattr(network, name, Counted(getattr(network, name)).eval())
    ran = visits(network, "text.module", "value.module")
    with torch.no_grad():
        found = sample(policy, network=network, given=given)
        expected = sample(network=Text(prepare), given=given)
    assert torch.equal(found.sample, expected.sample)
    return [*ran.values()], found


def constant(compare="memory"):
    return ConstantBranches(modules="text|value", compare=compare)


def test_what_is_given_the_same_tensor_runs_once_a_branch():
    ran, found = count(constant())
    # the second is given a view of what the first returned, which is the same tensor each time
    assert ran == [2, 2]
    reused = [call.sites["named"][1] for call in found.trace.calls()]
    assert reused == [0, 0] + [2, 2] * (STEPS - 1)


def test_equal_values_in_another_tensor_count_only_where_values_are_compared():
    def copied(shift):
        return shift.clone()

    # kept at the first two steps, then left alone
    assert count(constant(), copied)[0] == [2 * STEPS, 2 * STEPS]
    assert count(constant("values"), copied)[0] == [2, 2]


@pytest.mark.parametrize("compare", ["memory", "values"])
def test_what_changes_runs_at_every_step(compare):
    steps = iter(range(1000))
    network = Text(lambda shift: shift * 0 + next(steps))
    found = sample(constant(compare), network=network, given=request())
    steps = iter(range(1000))
    plain = Text(lambda shift: shift * 0 + next(steps))
    assert torch.equal(found.sample, sample(network=plain, given=request()).sample)
    assert all(call.sites["named"][1] == 0 for call in found.trace.calls())


@pytest.mark.parametrize("compare", ["memory", "values"])
def test_what_is_written_into_runs_again(compare):
    buffer, seen = torch.zeros(2, 3), []

    def write(shift):
        seen.append(1)
        if len(seen) == 2 * 4 + 1:  # at the fifth step
            buffer.add_(1.0)
        return buffer

    network = Text(write)
    found = sample(constant(compare), network=network, given=request())
    buffer.zero_()
    seen.clear()
    expected = sample(network=Text(write), given=request())
    assert torch.equal(found.sample, expected.sample)
    ran = [call.sites["named"][0] for call in found.trace.calls()]
    assert ran == [2, 2, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0]


@BOTH
def test_the_same_memory_is_not_the_same_tensor(copies):
    module, x = nn.Linear(3, 3), torch.randn(2, 3)
    held = Inputs.of(module, (x,), {}, copies)
    assert held.is_same(module, (x,), {})
    # memory that is written into by what PyTorch does not count, such as a replayed graph
    assert held.is_same(module, (x.detach(),), {}) is copies
    assert not held.is_same(module, (x.unsqueeze(0),), {})
    assert not held.is_same(module, (x.double(),), {})
    assert not held.is_same(module, (), {"input": x})


@BOTH
def test_views_are_the_same_if_they_show_the_same_part(copies):
    module, x = nn.Linear(3, 3), torch.randn(4, 3)
    held = Inputs.of(module, (x[:2],), {}, copies)
    assert held.is_same(module, (x[:2],), {})
    assert not held.is_same(module, (x[2:],), {})
    x[0, 0] += 1
    assert not held.is_same(module, (x[:2],), {})


@BOTH
def test_containers_and_plain_values_are_compared_and_objects_are_not(copies):
    module, x = nn.Linear(3, 3), torch.randn(2, 3)
    args, kwargs = ([x, None], 2), {"scale": 0.5, "more": {"x": x}}
    held = Inputs.of(module, args, kwargs, copies)
    assert held.is_same(module, ([x, None], 2), {"scale": 0.5, "more": {"x": x}})
    assert not held.is_same(module, ([x, None], True), kwargs)
    assert not held.is_same(module, ([x], 2), kwargs)
    assert not held.is_same(module, args, {"scale": 0.25, "more": {"x": x}})
    assert not held.is_same(module, args, {"scale": 0.5, "more": {"y": x}})
    unknown = object()
    assert not Inputs.of(module, (unknown,), {}, copies).is_same(module, (unknown,), {})


@BOTH
def test_changed_weights_are_another_module(copies):
    module, x = nn.Linear(3, 3), torch.randn(2, 3)
    held = Inputs.of(module, (x,), {}, copies)
    with torch.no_grad():
        module.weight.add_(1.0)
    assert not held.is_same(module, (x,), {})
    held = Inputs.of(module, (x,), {}, copies)
    module.weight = nn.Parameter(module.weight.detach().clone())
    assert not held.is_same(module, (x,), {})


def test_a_nan_is_not_equal_to_itself_in_another_tensor():
    module, x = nn.Linear(1, 1), torch.tensor([[float("nan")]])
    held = Inputs.of(module, (x,), {}, copies=True)
    assert held.is_same(module, (x,), {})
    assert not held.is_same(module, (x.clone(),), {})


@BOTH
def test_tensors_without_a_count_of_writes_are_never_the_same_by_memory(copies):
    module = nn.Linear(3, 3)
    with torch.inference_mode():
        x = torch.randn(2, 3)
    assert Inputs.of(module, (x,), {}, copies).is_same(module, (x,), {}) is copies


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_in_training_mode_runs(inside):
    network = Text()
    network.text.train()
    if inside:
        outer = Counted(network.text)
        outer.training, network.text = False, outer
    found = sample(constant(), network=network, given=request())
    # what it returns is another tensor each time, so the second one runs as well
    assert {call.sites["named"] for call in found.trace.calls()} == {(2, 0, 0)}


def test_a_module_that_is_visited_twice_in_a_call_is_left_alone():
    class Twice(Text):
        def _predict(self, x, sigma, shift):
            first = self.text(self.condition).mean()
            return super()._predict(x, sigma, shift) + 0.01 * first

    network = Twice()
    ran = visits(network, "text")
    given = request()
    found = sample(ConstantBranches(modules="text"), network=network, given=given)
    assert torch.equal(found.sample, sample(network=Twice(), given=given).sample)
    assert ran["text"] == 4 * STEPS


def test_names_are_matched_as_a_whole_and_must_be_there():
    with pytest.raises(CapabilityError, match="nothing matches; its parts are embed, blocks, head"):
        sample(ConstantBranches(modules="tex"), network=Text())
    with pytest.raises(PolicyError, match="is no regular expression"):
        ConstantBranches(modules="(")
    with pytest.raises(PolicyError, match="cannot compare 'hash'"):
        ConstantBranches(modules="text", compare="hash")


def test_a_configuration_says_the_same():
    (policy,) = build_policies([{"constant": {"modules": "text", "compare": "values"}}])
    assert policy.selects == (Named(path="text"),)
    assert not policy.traits.static
    (again,) = build_policies([{"constant": options_of(policy)}])
    assert repr(again) == repr(policy)
