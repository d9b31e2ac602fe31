"""FasterCache through unmodified pipelines, beside oracles and beside diffusers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_bench.other_caches import bridge
from erta_bench.shapes_image import load_flux, load_unet
from erta_framework.errors import CapabilityError
from erta_framework.modules import Cut, find_cut
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan import load as load_wan
from erta_policies.at import At
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from erta_policies.fastercache import (
    PRESETS,
    AttentionExtrapolation,
    BranchDelta,
    CfgCache,
    FasterCache,
    GuidancePlan,
)
from erta_policies.taylorseer import RefreshInterval
from tiny_pipelines import FAMILIES

# of the FasterCache of diffusers
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")

BATCHED = ("sd", "sdxl", "cogvideox", "pixart-sigma", "sd3", "mochi", "latte")
APART = ("wan-euler", "cogview4", "flux-true-cfg", "qwen-image")
PACKED = ("flux-true-cfg", "qwen-image", "ltx")


def component(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def run(
    name: str, policies: Any, steps: int, batch: int = 1, pipe: Any = None, **changes: Any
) -> Any:
    """Latents, trace, and the rows of every real network call, seen from inside the network."""
    family = FAMILIES[name]
    pipe = family.build() if pipe is None else pipe
    rows: list[int] = []
    inner = component(pipe).get_submodule(family.inner[0].partition(".")[2])
    inner.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[0]))
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, steps, batch=batch, **changes)
    return latents, attached.traces[0], rows


def plain(name: str, steps: int, batch: int = 1) -> Any:
    return FAMILIES[name].run(FAMILIES[name].build(), steps, batch=batch)


def is_packed(name: str) -> bool:
    return name in PACKED


# ------------------------------------------------------------------------------ null runs
@pytest.mark.parametrize("name", [*BATCHED, *APART])
def test_full_steps_only_change_no_bit(name: str) -> None:
    never = FasterCache(period=1, interval=1, bands=not is_packed(name))
    latents, trace, _ = run(name, [never], 6)
    assert torch.equal(latents, plain(name, 6))
    assert trace.work == trace.network_samples


@pytest.mark.parametrize("load", [load_wan, load_unet, load_flux])
def test_full_steps_only_change_no_bit_of_trained_models(load: Any) -> None:
    model = load()
    pipe = pipeline(model)
    asked = request(model, ["a red circle left"], seeds=[3], num_steps=6)
    expected = samples_of(model, pipe(**asked))
    bands = load is not load_flux
    with attach(pipe, [FasterCache(period=1, interval=1, bands=bands)]):
        again = request(model, ["a red circle left"], seeds=[3], num_steps=6)
        assert torch.equal(samples_of(model, pipe(**again)), expected)
    with attach(pipe, [FasterCache(period=3, bands=bands)]) as attached:
        again = request(model, ["a red circle left"], seeds=[3], num_steps=6)
        found = samples_of(model, pipe(**again))
    assert found.isfinite().all()
    assert not torch.equal(found, expected)
    assert attached.traces[0].work < 12


# -------------------------------------------------------------------------------- what ran
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["sd", "cogvideox", "pixart-sigma"])
def test_rows_of_the_conditional_branch_run_alone(name: str, batch: int) -> None:
    policy = CfgCache(period=3, start=0.3)
    _, trace, rows = run(name, [policy], 8, batch)
    skips = policy.plan_branches(8).skips
    assert rows == [batch if skipped else 2 * batch for skipped in skips]
    order = ("uncond", "cond")
    for step, skipped in zip(trace.steps, skips, strict=True):
        (call,) = step.calls
        own = tuple(range(batch * order.index("cond"), batch * order.index("cond") + batch))
        assert call.rows == (own if skipped else None)


@pytest.mark.parametrize("name", APART)
def test_calls_of_the_unconditional_branch_are_left_out(name: str) -> None:
    policy = CfgCache(period=3, start=0.3, bands=not is_packed(name))
    _, trace, rows = run(name, [policy], 8)
    skips = policy.plan_branches(8).skips
    assert len(rows) == 8 + skips.count(False)
    ran = {c.index for c in trace.calls() if c.computed and c.branch == "uncond"}
    assert ran == {k for k in range(8) if not skips[k]}


class Oracle:
    """A network of `[uncond, cond]` rows under CFG-Cache, as a wrapper around its `forward`."""

    def __init__(self, network: Any, plan: GuidancePlan, names: tuple[str, ...]) -> None:
        self.own, self.plan, self.names, self.index = network.forward, plan, names, 0
        self.delta: BranchDelta | None = None
        network.forward = self

    def call(self, row: slice, given: dict[str, Any]) -> Tensor:
        chosen = {k: v[row] if k in self.names else v for k, v in given.items()}
        found: Tensor = self.own(**{**chosen, "return_dict": False})[0]
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        cond = self.call(slice(1, 2), given)
        if self.plan.skips[self.index]:
            assert self.delta is not None
            self.delta.grow(*self.plan.weights[self.index])
            uncond = self.delta.add_to(cond)
        else:
            uncond = self.call(slice(0, 1), given)
            self.delta = BranchDelta.of(self.index, cond, uncond, split=True)
        self.index += 1
        return (torch.cat([uncond, cond]),)


@pytest.mark.parametrize(
    ("name", "stacked"),
    [
        ("sd", ("sample", "encoder_hidden_states")),
        ("cogvideox", ("hidden_states", "encoder_hidden_states", "timestep")),
    ],
)
def test_the_batch_is_the_released_arithmetic(name: str, stacked: tuple[str, ...]) -> None:
    policy = CfgCache(period=4, start=0.2, low=1.3, high=1.2, low_until=0.6, high_from=0.4)
    family = FAMILIES[name]
    pipe = family.build()
    Oracle(component(pipe), policy.plan_branches(8), stacked)
    expected = family.run(pipe, 8)
    latents, _, _ = run(name, [policy], 8)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def count_attention(pipe: Any) -> dict[str, list[int]]:
    """Rows of every run of each self-attention, seen from inside of it."""
    found: dict[str, list[int]] = {}
    for path, module in component(pipe).named_modules():
        if path.endswith("attn1.to_q"):
            found[path] = []
            module.register_forward_pre_hook(
                lambda _, given, path=path: found[path].append(given[0].shape[0])
            )
    return found


@pytest.mark.parametrize("name", ["sd", "cogvideox"])
def test_attention_is_kept_row_by_row(name: str) -> None:
    cfg, attention = FasterCache(period=4, interval=2, start=0.25).parts()
    pipe = FAMILIES[name].build()
    counts = count_attention(pipe)
    latents, trace, _ = run(name, [cfg, attention], 12, pipe=pipe)
    skips = cfg.plan_branches(12).skips
    weights = attention.plan_modules(12).weights
    # 8 is a full step after one without the unconditional rows, so attention runs
    assert [w is None for w in weights] == [k in (0, 1, 2, 4, 6, 8, 10, 11) for k in range(12)]
    expected = [1 if skipped else 2 for k, skipped in enumerate(skips) if weights[k] is None]
    assert counts
    assert counts == dict.fromkeys(counts, expected)
    assert latents.isfinite().all()
    assert trace.network_samples == 12 + skips.count(False)


def test_calls_apart_and_rows_of_a_batch_leave_out_the_same() -> None:
    """The same schedule in both forms of guidance: what each branch ran, per step."""
    cfg, attention = FasterCache(period=4, interval=2, start=0.25).parts()
    _, apart, _ = run("wan-euler", [cfg, attention], 12)
    _, batched, _ = run("cogvideox", [cfg, attention], 12)
    ran = [
        tuple(c.branch for c in step.calls if c.computed and c.sites["attention"][0])
        for step in apart.steps
    ]
    rows = [
        ("cond",) if step.calls[0].rows else ("cond", "uncond")
        for step in batched.steps
        if step.calls[0].sites["attention"][0]
    ]
    assert [branches for branches in ran if branches] == rows


def test_beside_a_step_rule_whole_steps_are_left_out() -> None:
    rule = SkipPolicy(steps=(0, 1, 2, 5, 6, 9, 10, 11))
    _, _, rows = run("sd", [CfgCache(period=4, start=0.0), rule], 12)
    # full at 0, 4, 8, 11; 5 and 9 make up for 4 and 8
    assert rows == [2, 1, 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("preset", ["cogvideox", "mochi"])
def test_presets_run_on_their_models(preset: str) -> None:
    cfg, attention = FasterCache(preset=preset).parts()
    steps = PRESETS[preset].steps
    latents, trace, rows = run(preset, [cfg, attention], steps)
    assert rows == [1 if skipped else 2 for skipped in cfg.plan_branches(steps).skips]
    reused = [step.calls[0].sites["attention"][1] > 0 for step in trace.steps]
    assert reused == [w is not None for w in attention.plan_modules(steps).weights]
    assert latents.isfinite().all()


def test_the_text_stream_of_mochi_is_reused_as_it_is() -> None:
    pipe, found = FAMILIES["mochi"].build(), []
    pipe.transformer.transformer_blocks[0].attn1.register_forward_hook(
        lambda _, __, output: found.append(output)
    )
    run("mochi", [FasterCache(preset="mochi")], 64, pipe=pipe)
    # 20 is a full step from those of 18 and 19; 34 has one row, and 32 to 33 ran with one
    (old, _), (new, text) = found[18], found[19]
    torch.testing.assert_close(found[20][0], new + 0.5 * (new - old))
    assert torch.equal(found[20][1], text)
    (old, _), (new, text) = found[31], found[33]
    weight = 34 / 63
    torch.testing.assert_close(found[34][0], new + weight * (new - old))
    assert torch.equal(found[34][1], text)


@pytest.mark.parametrize("name", ["sd", "wan-euler"])
def test_a_rule_that_decides_by_values_may_stand_after_it(name: str) -> None:
    latents, trace, rows = run(name, [CfgCache(period=4), EasyCache(threshold=0.2, warmup=2)], 12)
    whole = sum(not any(call.computed for call in step.calls) for step in trace.steps)
    halves = trace.network_samples - (12 - whole)
    assert latents.isfinite().all()
    assert whole > 0
    assert 0 < halves < 12 - whole
    assert sum(rows) == trace.network_samples


def test_guidance_that_ends_early_leaves_one_branch_to_run() -> None:
    def end_guidance(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 7:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": given["prompt_embeds"].chunk(2)[1]}
        return given

    changes = {
        "callback_on_step_end": end_guidance,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    policy = CfgCache(period=4, start=0.25)
    _, _, rows = run("sd", [policy], 12, **changes)
    assert rows == [2, 2, 2, 1, 2, 1, 1, 1] + [1] * 4


# ------------------------------------------------------------------------------ with a cut
class DeepOracle(Oracle):
    """The same with the deep part of a UNet kept for each branch, row by row."""

    def __init__(
        self, network: Any, plan: GuidancePlan, names: tuple[str, ...], deep: tuple[str, ...]
    ) -> None:
        self.entry = network.get_submodule(find_cut(network, 0).members[-1])
        self.kept: dict[str, Any] = {}
        self.deep = deep
        super().__init__(network, plan, names)

    def call(self, row: slice, given: dict[str, Any]) -> Tensor:
        branch = "cond" if row.start else "uncond"
        if branch in self.deep[self.index]:
            handle = self.entry.register_forward_hook(
                lambda _, __, output: self.kept.update({branch: output})
            )
            try:
                return super().call(row, given)
            finally:
                handle.remove()
        vars(self.entry)["forward"] = lambda *_, **__: self.kept[branch]
        try:
            return super().call(row, given)
        finally:
            del vars(self.entry)["forward"]


def test_a_cut_under_cfg_cache_counts_the_age_of_every_row() -> None:
    policy = CfgCache(period=4, start=0.25, bands=False)
    deep = At(sites=Cut(branch=0), when=RefreshInterval(interval=2, first=1))
    pipe = FAMILIES["sd"].build()
    inside: list[int] = []
    pipe.unet.mid_block.resnets[0].register_forward_pre_hook(
        lambda _, given: inside.append(given[0].shape[0])
    )
    latents, trace, rows = run("sd", [policy, deep], 8, pipe=pipe)
    # both branches run at 0, 1, 4 and 7; the cut is due at 0, 2, 4 and 6
    assert rows == [2, 2, 1, 1, 2, 1, 1, 2]
    # at 7 the conditional row was kept at 6, but the other one at 4: it is due for both
    assert [step.calls[0].sites["cut"][0] for step in trace.steps] == [1, 0, 1, 0, 1, 0, 1, 1]
    assert inside == [2, 1, 2, 1, 2]
    # a call on one row spares the same share as one on both
    share = trace.steps[1].calls[0].share
    assert 0 < share < 1
    assert [step.calls[0].share for step in trace.steps] == [1, share, 1, share, 1, share, 1, 1]
    assert trace.work == pytest.approx(sum(rows) - 4 * (1 - share))

    both, none = "cond uncond", ""
    family, oracle = FAMILIES["sd"], FAMILIES["sd"].build()
    DeepOracle(
        oracle.unet,
        policy.plan_branches(8),
        ("sample", "encoder_hidden_states"),
        (both, none, "cond", none, both, none, "cond", both),
    )
    torch.testing.assert_close(latents, family.run(oracle, 8), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("name", ["hunyuan-video", "flux2", "sana-sprint"])
def test_networks_that_are_distilled_for_guidance_are_refused_by_name(name: str) -> None:
    pipe = FAMILIES[name].build()
    told = rf"CfgCache.* transformer \({type(pipe.transformer).__name__}\) is distilled"
    with pytest.raises(CapabilityError, match=told):
        attach(pipe, [FasterCache()])
    latents, trace, _ = run(name, [AttentionExtrapolation()], 6)
    assert latents.isfinite().all()
    assert trace.work < trace.network_samples


def test_a_distilled_network_may_be_given_a_negative_prompt_all_the_same() -> None:
    with attach(FAMILIES["flux2"].build(), [CfgCache(true_cfg=True)]):
        pass


def test_networks_that_cannot_run_on_some_rows_are_refused_as_soon_as_it_is_known() -> None:
    # its rotary embedding is a pair, and so is the batch
    with pytest.raises(CapabilityError, match=r"its argument image_rotary_emb"):
        run("cogvideox-i2v", [CfgCache()], 9)
    # its attention puts the frames into the batch
    with pytest.raises(CapabilityError, match=r"attn1 keeps an output that has no row for each"):
        run("latte", [FasterCache()], 9)
    for policy in (CfgCache(), AttentionExtrapolation()):
        latents, trace, _ = run("latte", [policy], 9)
        assert latents.isfinite().all()
        assert trace.work < 18


@pytest.mark.parametrize("name", PACKED)
def test_bands_of_packed_tokens_are_refused(name: str) -> None:
    with pytest.raises(CapabilityError, match=r"as packed tokens do not; set bands=False"):
        run(name, [CfgCache()], 6)
    latents, trace, _ = run(name, [CfgCache(bands=False)], 6)
    assert latents.isfinite().all()
    assert trace.network_samples < 12


def test_branches_that_the_pipeline_does_not_name_are_named_by_the_user() -> None:
    with pytest.raises(CapabilityError, match=r"the branches of this run are call0, call1"):
        run("chroma", [CfgCache(bands=False)], 6)
    _, trace, rows = run("chroma", [CfgCache(bands=False, cond="call0", uncond="call1")], 6)
    assert len(rows) == trace.network_calls < 12


def test_a_run_without_guidance_is_refused() -> None:
    family = FAMILIES["sd"]
    pipe = family.build()
    with (
        attach(pipe, [CfgCache()]),
        pytest.raises(CapabilityError, match="give a guidance scale above 1"),
    ):
        family.run(pipe, 6, guidance_scale=1.0)


# --------------------------------------------------------------------- diffusers' FasterCache
STEPS = 7
COG = FAMILIES["cogvideox"]


def run_rival(
    steps: int, weigh: Callable[[int], float] = lambda _: 0.0, **settings: Any
) -> tuple[Tensor, list[float]]:
    """Latents and timesteps under the FasterCache of diffusers; attention weights by the step."""
    pipe = COG.build()

    def weight(_: Any) -> float:
        return weigh(pipe.scheduler.timesteps.tolist().index(int(pipe.current_timestep)))

    given = {
        "spatial_attention_block_skip_range": None,
        "temporal_attention_block_skip_range": None,
        "attention_weight_callback": weight,
        "unconditional_batch_skip_range": 3,
        "unconditional_batch_timestep_skip_range": (-1, 1001),
        "low_frequency_weight_update_timestep_range": (-1, 1001),
        "high_frequency_weight_update_timestep_range": (-1, 1001),
        **settings,
    }
    with bridge(pipe, "FasterCache", layout=COG.layout, batched=True, **given):
        latents = COG.run(pipe, steps, **COG.other)
    return latents, pipe.scheduler.timesteps.tolist()


def run_ours(policies: Any, steps: int = STEPS) -> Any:
    return run("cogvideox", policies, steps, **COG.other)


def ours(**settings: Any) -> CfgCache:
    return CfgCache(period=3, start=0.0, **{"low_until": 1.0, "high_from": 0.0, **settings})


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.1, 1.1), (1.3, 0.8)])
def test_cfg_cache_is_that_of_diffusers(low: float, high: float) -> None:
    expected, _ = run_rival(STEPS, alpha_low_frequency=low, alpha_high_frequency=high)
    latents, _, rows = run_ours([ours(low=low, high=high)])
    assert rows == [2, 1, 1, 2, 1, 1, 2]
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    full = run_ours([])[0]
    assert (latents - full).abs().max() > 10 * (latents - expected).abs().max()


def test_windows_of_the_bands_are_those_of_diffusers() -> None:
    _, times = run_rival(STEPS)
    expected, _ = run_rival(
        STEPS,
        low_frequency_weight_update_timestep_range=(times[4], 1001),
        high_frequency_weight_update_timestep_range=(-1, times[1]),
        alpha_low_frequency=1.4,
        alpha_high_frequency=1.4,
    )
    # the low ones grow before step 4, the high ones after step 1
    latents, _, _ = run_ours([ours(low=1.4, high=1.4, low_until=4 / 7, high_from=1 / 7)])
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def compare_attention(steps: int, most: float) -> float:
    """The largest difference between both with attention as well."""
    expected, _ = run_rival(
        steps,
        lambda index: min(most, index / (steps - 1)),
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
    )
    cfg = ours(low=1.1, high=1.1)
    attention = AttentionExtrapolation(interval=2, start=0.0, most=most, beside=cfg)
    latents, _, _ = run_ours([cfg, attention], steps)
    return float((latents - expected).abs().max())


@pytest.mark.parametrize(("steps", "most"), [(7, 0.0), (7, 0.5), (7, 1.0), (13, 0.0)])
def test_attention_is_that_of_diffusers_where_no_made_output_is_continued(
    steps: int, most: float
) -> None:
    assert compare_attention(steps, most) < 1e-4


def test_diffusers_also_keeps_what_it_made_up() -> None:
    """The release keeps computed outputs alone; the hook of diffusers pushes extrapolated ones."""
    # at step 7 its older output is the one that it made at step 5, ours is that of step 4
    assert compare_attention(13, 1.0) > 1e-3
