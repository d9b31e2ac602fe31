"""Places inside the networks of pipelines: reuse, composition, and what is left behind."""

from __future__ import annotations

import pytest
import torch

from erta_framework import Policy, Reuse, Seam, Traits, hookimpl
from erta_framework.errors import CapabilityError, ConflictError
from erta_framework.modules import KEEP, Cut, Keep, ReuseKept, Select
from erta_integrations.diffusers import attach
from erta_policies.at import At
from erta_policies.ertacache import SkipPolicy
from erta_policies.taylorseer import RefreshInterval
from module_plans import Plan, every, gated, plan
from tiny_pipelines import FAMILIES

STEPS = 6
NAMES = ("wan-euler", "flux", "sd", "sd3", "cogview4", "pixart-sigma", "sdxl", "z-image", "ltx")


def parts(interval, *kinds, **options):
    every_n = RefreshInterval(interval=interval, first=1)
    return At(sites=Select(kind=kinds or ("attention", "mlp")), when=every_n, **options)


def network_of(pipe, family):
    component, _, inner = family.inner[0].partition(".")
    return getattr(pipe, component), inner


def run(name, policies, inspect=None, batch=1, **options):
    family = FAMILIES[name]
    pipe = family.build()
    network, _ = network_of(pipe, family)
    before = gated(network)
    if inspect is not None:
        inspect(network)
    with attach(pipe, policies, **options) as attached:
        latents = family.run(pipe, STEPS, batch=batch)
    assert gated(network) == before
    return latents, attached.traces[0]


def plain(name, batch=1):
    family = FAMILIES[name]
    return family.run(family.build(), STEPS, batch=batch)


def count_inside(module, counts, key):
    """Count the runs of the first module inside with weights, which no gate answers for."""
    inner = next(m for m in module.modules() if m is not module and list(m.parameters(False)))
    inner.register_forward_pre_hook(lambda *_: counts.__setitem__(key, counts.get(key, 0) + 1))


# ------------------------------------------------------------------------------- null runs
@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_that_computes_every_step_changes_no_bit(name):
    latents, trace = run(name, [parts(1)])
    assert torch.equal(latents, plain(name))
    assert trace.module_bytes > 0
    assert trace.work == trace.network_samples


@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd3"])
def test_keeping_residuals_of_blocks_changes_no_bit(name):
    keep = plan(lambda _, call: dict.fromkeys(call.sites, Keep("residual")), "block")
    latents, _ = run(name, [keep])
    assert torch.equal(latents, plain(name))


# --------------------------------------------------------------------------- what ran
@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd"])
def test_reused_modules_do_not_run(name):
    counts: dict[str, int] = {}
    paths: list[str] = []

    def inspect(network):
        for path, module in network.named_modules():
            if path.endswith((".attn1", ".attn", ".ff", ".ffn")):
                paths.append(path)
                count_inside(module, counts, path)

    latents, trace = run(name, [parts(3)], inspect)
    per_step = trace.network_calls // STEPS
    assert paths
    # steps 0 and 3 compute
    assert counts == dict.fromkeys(paths, 2 * per_step)
    assert latents.isfinite().all()
    assert trace.network_calls == STEPS * per_step
    assert trace.work < trace.network_samples
    assert f"{trace.network_calls} network calls, the work of " in trace.summary()


def test_shares_are_those_of_flops():
    from erta_integrations.diffusers.modules import measure_costs

    family = FAMILIES["wan-euler"]
    found: list[float] = []
    pipe = family.build()
    transformer = pipe.transformer
    with attach(pipe, [parts(2)]) as attached:
        family.run(pipe, STEPS)
    calls = list(attached.traces[0].calls())
    given = {}
    transformer.register_forward_pre_hook(
        lambda _, args, kwargs: given.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    family.run(pipe, STEPS)
    costs = measure_costs(transformer, lambda: transformer(*given["args"], **given["kwargs"]))
    for path, cost in costs.items():
        if path.endswith((".attn1", ".ffn")):
            found.append(cost)
    expected = 1.0 - sum(found)
    assert [call.share for call in calls[:4]] == pytest.approx([1.0, 1.0, expected, expected])


# ----------------------------------------------------------------------------------- cuts
@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("branch", [0, 1])
def test_a_cut_runs_the_shallow_part_only_and_no_phantom_comes_out(name, branch):
    deep = At(sites=Cut(branch=branch), when=RefreshInterval(interval=2, first=1))
    counts: dict[str, int] = {}

    def inspect(network):
        network.mid_block.register_forward_pre_hook(
            lambda *_: counts.__setitem__("mid", counts.get("mid", 0) + 1)
        )
        count_inside(network.mid_block.resnets[0], counts, "inside")
        network.conv_out.register_forward_pre_hook(
            lambda *_: counts.__setitem__("out", counts.get("out", 0) + 1)
        )

    latents, trace = run(name, [deep], inspect)
    assert latents.isfinite().all()
    assert counts["out"] == trace.network_calls
    assert counts["inside"] == trace.network_calls // 2
    assert [dict(call.sites) for call in trace.calls()][:2] == [
        {"cut": (1, 0, 0)},
        {"cut": (0, 1, 0)},
    ]


def test_a_cut_at_every_step_is_the_network():
    deep = At(sites=Cut(branch=0), when=RefreshInterval(interval=1, first=1))
    latents, _ = run("sd", [deep])
    assert torch.equal(latents, plain("sd"))


def test_a_transformer_has_no_cut():
    pipe = FAMILIES["flux"].build()
    with pytest.raises(CapabilityError, match=r"cannot have Cut\(branch=0\) in transformer"):
        attach(pipe, [At(sites=Cut(), when=RefreshInterval(interval=2))])


# ----------------------------------------------------------------------------- composition
@pytest.mark.parametrize(
    ("name", "seam"),
    [("wan-euler", "latent"), ("flux", "latent"), ("sd", "latent"), ("wan-euler", "trunk")],
)
def test_a_step_rule_beside_it_only_makes_modules_older(name, seam):
    ages: dict[str, list] = {}

    def make(step, call):
        ages.setdefault(call.branch, []).append((step.index, call.age(call.sites[0])))
        return every(3)(step, call)

    latents, trace = run(name, [SkipPolicy(steps=(0, 1, 4)), plan(make, "attention")], seam=seam)
    assert latents.isfinite().all()
    skipped = trace.steps[2].calls[0]
    assert not skipped.computed
    if seam == "latent":
        assert skipped.sites == {}
    for found in ages.values():
        if seam == "latent":
            assert found == [(0, None), (1, 1), (4, 4), (5, 1)]
        else:  # embedders and head still run, and the plan is made; blocks are not reached
            assert [index for index, _ in found] == list(range(STEPS))


def test_with_a_step_rule_that_computes_everything_it_is_alone():
    alone, _ = run("wan-euler", [parts(2)])
    beside, _ = run("wan-euler", [SkipPolicy(steps=tuple(range(STEPS))), parts(2)])
    assert torch.equal(alone, beside)


def test_whole_blocks_belong_to_the_trunk_at_that_seam():
    pipe = FAMILIES["wan-euler"].build()
    with pytest.raises(CapabilityError, match=r"at the trunk seam the blocks are answered for as"):
        attach(pipe, [SkipPolicy(every=2), plan(every(2), "block")], seam="trunk")


class Listed(Policy):
    """Sample k of the prompts computes at the steps listed for it, in every copy of it."""

    traits = Traits(decides="sample")
    steps: tuple[tuple[int, ...], ...] = ()

    @hookimpl
    def decide(self, step, call):
        mask = [step.index not in own for own in self.steps]
        return Reuse("listed", mask=mask * (call.x.shape[0] // len(self.steps)))


@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd"])
def test_rows_of_a_batch_read_and_write_their_own_cells(name):
    calls: list[tuple] = []

    def make(step, call):
        calls.append((step.index, call.branch, call.rows, call.age(call.sites[0])))
        return every(2)(step, call)

    steps = ((0, 1, 2, 4), (0, 3, 4))
    latents, _ = run(name, [Listed(steps=steps), plan(make, "attention", "mlp")], batch=2)
    assert latents.isfinite().all()
    copies = 2 if name == "sd" else 1

    def rows(*chosen):
        return tuple(copy * 2 + row for copy in range(copies) for row in chosen)

    first = [(i, r, a) for i, branch, r, a in calls if branch == calls[0][1]]
    assert first == [
        (0, None, None),
        (1, rows(0), 1),
        (2, rows(0), 2),
        (3, rows(1), 3),
        (4, None, 2),
    ]


def test_forecasts_weigh_every_row_by_its_own_steps():
    from erta_policies.forecast import Forecaster

    line = Forecaster(basis="taylor", order=1, over="index")
    when = RefreshInterval(interval=9, first=3)
    steps = ((0, 1, 3, 5), (0, 2, 5))
    sites = Select(kind=("attention", "mlp"))
    policies = [Listed(steps=steps), At(sites=sites, when=when, what=line)]
    latents, trace = run("wan-euler", policies, batch=2)
    assert latents.isfinite().all()
    assert trace.steps[5].calls[0].sites["mlp"][1] > 0


# --------------------------------------------------------------------------- row branches
def branches_seen(name, seen):
    def make(step, call):
        seen.append(call.row_branches)
        return {}

    return run(name, [plan(make, "attention")])


@pytest.mark.parametrize("name", ["sd", "pixart-sigma", "sd3"])
def test_rows_of_batched_guidance_have_branches(name):
    seen: list[tuple[str, ...]] = []
    branches_seen(name, seen)
    assert set(seen) == {("uncond", "cond")}


@pytest.mark.parametrize("name", ["wan-euler", "flux"])
def test_rows_of_one_branch_have_none(name):
    seen: list[tuple[str, ...]] = []
    branches_seen(name, seen)
    assert set(seen) == {()}


# ------------------------------------------------------------------- what is left behind
def test_an_exception_in_a_module_leaves_nothing():
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    calls: list[int] = []

    class Boom(Exception):
        pass

    def explode(*_):
        calls.append(1)
        if len(calls) == 5:
            raise Boom

    handle = pipe.transformer.blocks[1].ffn.register_forward_pre_hook(explode)
    with attach(pipe, [parts(2)]) as attached:
        with pytest.raises(Boom):
            family.run(pipe, STEPS)
        assert len(attached.traces) == 1
        handle.remove()
        after = family.run(pipe, STEPS)
    assert gated(pipe.transformer) == []
    assert torch.equal(after, run("wan-euler", [parts(2)])[0])


def test_two_attachments_conflict_and_the_first_stays():
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with attach(pipe, [parts(2)]) as first:
        with pytest.raises(ConflictError, match="has an engine attached already"):
            attach(pipe, [parts(3)]).__enter__()
        latents = family.run(pipe, STEPS)
    assert first.traces[0].network_calls
    assert torch.equal(latents, run("wan-euler", [parts(2)])[0])
    assert gated(pipe.transformer) == []


def test_two_policies_of_one_place_conflict_before_anything_is_touched():
    pipe = FAMILIES["flux"].build()
    with pytest.raises(ConflictError, match=r"transformer_blocks\.0\.attn of transformer has two"):
        attach(pipe, [parts(2, "attention"), parts(3, "attention", "mlp")])
    assert gated(pipe.transformer) == []


def test_a_selection_without_a_place_names_what_there_is():
    pipe = FAMILIES["flux"].build()
    with pytest.raises(CapabilityError, match=r"cross.*nothing matches; there are"):
        attach(pipe, [plan(every(2), "cross")])


def test_a_fused_output_is_reused_without_what_feeds_it():
    ran: list[str] = []

    def inspect(network):
        for path in ("attn.to_q", "proj_mlp", "proj_out"):
            module = network.single_transformer_blocks[0].get_submodule(path)
            target = module if not list(module.children()) else next(module.children())
            target.register_forward_hook(lambda *_, path=path: ran.append(path))

    def make(step, call):
        return dict.fromkeys(call.sites, KEEP if step.index == 0 else ReuseKept())

    policy = Plan(make=make, selected=(Select(kind=("mlp",), stack="single_transformer_blocks"),))
    latents, trace = run("flux", [policy], inspect)
    assert latents.isfinite().all()
    # hooks of a gated module see its answers as well; the attention inside is not gated
    assert ran.count("attn.to_q") == 1
    assert trace.steps[1].calls[0].sites["mlp"] == (0, 2, 0)


def test_traits_of_at():
    assert parts(2).traits.seams == {Seam.MODULE}
    assert parts(2).traits.static


def deep(interval=2, branch=0):
    return At(sites=Cut(branch=branch), when=RefreshInterval(interval=interval, first=1))


def test_published_rules_stand_beside_modules():
    from erta_policies.adapters import WarmUp
    from erta_policies.ertacache import ERTACache, ResidualProfiler
    from erta_policies.magcache import MagCache, MagCacheProfiler

    cases = [
        ("sd", ResidualProfiler(), lambda p: ERTACache(profile=p, calls=4), [deep()]),
        ("wan-euler", MagCacheProfiler(), lambda p: MagCache(profile=p), [parts(2, "attention")]),
    ]
    for name, profiler, make, beside in cases:
        family = FAMILIES[name]
        pipe = family.build()
        with attach(pipe, [profiler]) as full:
            family.run(pipe, STEPS)
        rule = make(full.profile())
        alone = run(name, [rule])[1]
        latents, both = run(name, [rule, *beside])
        assert latents.isfinite().all()
        assert both.network_calls == alone.network_calls
        assert both.computed_steps == alone.computed_steps
        assert both.work < both.network_samples
        warmed = run(name, [WarmUp(steps=2), rule, *beside])[1]
        assert warmed.computed_steps[:2] == (0, 1)


def test_a_pipeline_is_measured_once_and_then_called_as_often_as_before():
    counts: dict[str, int] = {}
    latents, trace = run(
        "wan-euler",
        [parts(2)],
        lambda network: (
            count_inside(network.proj_out, counts, "out")
            if list(network.proj_out.children())
            else network.proj_out.register_forward_pre_hook(
                lambda *_: counts.__setitem__("out", counts.get("out", 0) + 1)
            )
        ),
    )
    assert counts["out"] == trace.network_calls
    assert latents.isfinite().all()


def test_blocks_that_are_compiled_as_a_whole_are_reused():
    family = FAMILIES["wan-euler"]
    plain_blocks, _ = run("wan-euler", [plan(every(2), "block")])
    pipe = family.build()
    for block in pipe.transformer.blocks:
        block.compile(backend="eager")
    compiled = [vars(block)["_compiled_call_impl"] for block in pipe.transformer.blocks]
    with attach(pipe, [plan(every(2), "block")]) as attached:
        latents = family.run(pipe, STEPS)
    assert [vars(block)["_compiled_call_impl"] for block in pipe.transformer.blocks] == compiled
    torch.testing.assert_close(latents, plain_blocks)
    assert attached.traces[0].steps[1].calls[0].sites == {"block": (0, 2, 0)}
    with pytest.raises(CapabilityError, match=r"lies inside blocks\.0 .*which is compiled"):
        attach(pipe, [parts(2)]).__enter__()


def test_at_the_trunk_only_computed_calls_spare_work():
    steps = (0, 1, 4)
    _, alone = run("wan-euler", [SkipPolicy(steps=steps)], seam="trunk")
    _, both = run("wan-euler", [SkipPolicy(steps=steps), parts(2)], seam="trunk")
    computed = [call for call in both.calls() if call.computed]
    assert both.network_samples == alone.network_samples
    assert both.work == pytest.approx(sum(call.share for call in computed))
    assert 0.0 < both.work < both.network_samples


@pytest.mark.parametrize("name", ["wan-euler", "cogvideox", "pixart-sigma", "ltx", "qwen-image"])
def test_the_residual_of_all_blocks_is_the_trunk(name):
    steps = (0, 1, 4, 5)

    def make(step, call):
        action = Keep("residual") if step.index in steps else ReuseKept(of="residual")
        return dict.fromkeys(call.sites, action)

    span, _ = run(name, [plan(make, "block", span=True)])
    trunk, _ = run(name, [SkipPolicy(steps=steps)], seam="trunk")
    assert torch.equal(span, trunk)
