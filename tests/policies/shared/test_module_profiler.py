"""ModuleProfiler: nothing changes, and the sums are those of hooks on an untouched network."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from erta_framework import CFG, NoGuidance, Profile
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.shared import ModuleProfiler, read_rows
from module_plans import STEPS, request, sample, visits

BLOCKS = (Select(kind=("block",)),)
PARTS = (Select(kind=("attention", "mlp")),)


class Products(ModuleProfiler):
    """Sums the products of what is watched with that of each earlier step."""

    kind = ProfileKind(
        "products",
        {"products": Entry(shape="b P T W", least=None), "samples": Entry(shape="b P T")},
    )
    places: tuple = BLOCKS
    back: int = 2

    @property
    def selects(self):
        return self.places

    @property
    def window(self):
        return self.back

    def measure(self, now, before):
        found = torch.zeros(self.back)
        for k, one in enumerate(before):
            assert one.index == now.index - k - 1
            found[k] = (now.outputs[0] * one.outputs[0]).sum()
        return {"products": found}


class Residuals(Products):
    of = "residual"
    takes_inputs = True

    def measure(self, now, before):
        assert [len(one.inputs) for one in (now, *before)] == [1] * (1 + len(before))
        found = torch.zeros(self.back)
        for k, one in enumerate(before):
            found[k] = (now.outputs[0] * one.outputs[0]).sum() + one.inputs[0].sum()
        return {"products": found}


class Kinds(Products):
    """One row for each kind, and two periods."""

    kind = ProfileKind("kinds", {"products": Entry(shape="b P K W", least=None)})

    def name_row(self, place):
        return place.kind

    def find_period(self, index, num_steps):
        return 2 * index // num_steps


def record(paths, guidance, batch=2):
    """Inputs and outputs of modules in an untouched run, `[path][branch] -> steps`."""
    network = BlockFlow()
    found = defaultdict(list)
    for path in paths:

        def hook(module, args, output, path=path):
            found[path].append((args[0].clone(), output.clone()))

        network.get_submodule(path).register_forward_hook(hook)
    sample(network=network, guidance=guidance, batch=batch)
    branches = 1 if isinstance(guidance, NoGuidance) else 2
    return {path: [steps[k::branches] for k in range(branches)] for path, steps in found.items()}


def profile_of(profiler, batch=2, guidance=None):
    (made,) = sample(profiler, batch=batch, guidance=guidance).emitted
    return made


@pytest.mark.parametrize("profiler", [Products(), Residuals(), Kinds(places=PARTS)])
@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=2.0)])
def test_nothing_changes_and_every_step_runs(profiler, guidance):
    plain, network = BlockFlow(), BlockFlow()
    counts = visits(network, "blocks.0.mlp.up")
    expected = sample(network=plain, guidance=guidance)
    found = sample(profiler, network=network, guidance=guidance)
    assert torch.equal(found.sample, expected.sample)
    assert plain.calls == network.calls == counts["blocks.0.mlp.up"]


@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=2.0)])
@pytest.mark.parametrize("back", [1, 3])
@pytest.mark.parametrize("kind", [Products, Residuals])
def test_the_sums_are_those_of_an_untouched_run(kind, back, guidance):
    profile = profile_of(kind(back=back), guidance=guidance)
    paths = read_rows(profile)
    runs = record(paths, guidance)
    for row, path in enumerate(paths):
        for branch, steps in enumerate(runs[path]):
            for step in range(STEPS):
                for k in range(min(back, step)):
                    (x, y), (x0, y0) = steps[step], steps[step - k - 1]
                    value = (y * y0).sum()
                    if kind is Residuals:
                        value = ((y - x) * (y0 - x0)).sum() + x0.sum()
                    found = profile.statistics["products"][branch, row, step, k]
                    assert torch.allclose(found.float(), value, rtol=1e-4, atol=1e-4)
    assert (profile.statistics["samples"] == 2).all()


def test_rows_and_periods_are_pooled():
    each = profile_of(Products(places=PARTS))
    pooled = profile_of(Kinds(places=PARTS))
    kinds = [name.rpartition(".")[2] for name in read_rows(each)]
    names = {"attn": "attention", "mlp": "mlp"}
    for row, kind in enumerate(read_rows(pooled)):
        own = [k for k, name in enumerate(kinds) if names.get(name, name) == kind]
        assert own
        summed = each.statistics["products"][:, own].sum(dim=1)
        halves = torch.stack([summed[:, : STEPS // 2].sum(1), summed[:, STEPS // 2 :].sum(1)], 1)
        assert torch.allclose(pooled.statistics["products"][:, row], halves)


def test_batches_merge_to_what_one_batch_gives():
    # samples of one batch do not see each other, so sums over them are sums over runs
    whole = profile_of(Products(), batch=2)
    given = request(2)
    alone = []
    for k in range(2):
        one = type(given)(
            latents=given.latents[k : k + 1],
            cond=given.cond[k : k + 1],
            uncond=given.uncond[k : k + 1],
            schedule=given.schedule,
        )
        alone += sample(Products(), given=one).emitted
    merged = Profile.merge(alone)
    assert merged.samples == whole.samples == 2
    assert torch.allclose(
        merged.statistics["products"], whole.statistics["products"], rtol=1e-4, atol=1e-4
    )


def test_memory_is_bounded_by_the_window():
    short = sample(Products(back=1)).trace.module_bytes
    long = sample(Products(back=3)).trace.module_bytes
    assert short * 4 == long * 2 > 0


class Scribbler(BlockFlow):
    """Writes into what its blocks return."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.register_forward_hook(lambda module, args, output: output.mul_(1.0))


@pytest.mark.parametrize("kind", [Products, Residuals])
def test_a_network_that_writes_into_its_outputs_is_not_changed(kind):
    plain = sample(network=Scribbler())
    found = sample(kind(), network=Scribbler())
    assert torch.equal(found.sample, plain.sample)
    (profile,) = found.emitted
    assert profile.statistics["products"].isfinite().all()


def test_a_run_with_reused_steps_is_refused():
    with pytest.raises(PolicyError, match=r"step 1 .* was reused"):
        sample(AlternateSteps(), Products())
