"""PromptTea in unmodified tiny pipelines and on the bundled model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import erta_framework as erta
from erta_framework import CFG, Policy, Sampler, Traits, hookimpl
from erta_framework.errors import CapabilityError
from erta_policies.ertacache import SkipPolicy
from erta_policies.prompttea import (
    BranchSubstitute,
    CodebookProfiler,
    PromptProfiler,
    PromptTea,
    PromptTeaRule,
    PromptThreshold,
    RegressionProfiler,
)
from tiny_pipelines import FAMILIES

PLANE = (0.0, 1.0, *(0.0,) * 10)


def run_steps(name: str, policies: list[Policy], steps: int, seam: str = "trunk", **options: Any):
    family, pipe = FAMILIES[name], FAMILIES[name].build()
    with erta.attach(pipe, policies, seam=seam) as run:
        latents = family.run(pipe, steps=steps, **options)
    return latents, run


class Texts(Policy):
    """Keeps the text embeddings and mask of each call."""

    traits = Traits(requires=frozenset({"signal:prompt", "signal:prompt_mask"}))
    seen: dict

    @hookimpl
    def pre_step(self) -> None:
        """Nothing; a policy needs a hook that is not a wrapper of forward to stand alone."""

    @hookimpl(wrapper=True)
    def forward(self, call):  # type: ignore[no-untyped-def]
        self.seen[call.branch] = call.feature("prompt").clone(), call.feature("prompt_mask").clone()
        return (yield)


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("name", ["wan-euler", "hunyuan-video", "cogvideox"])
def test_policies_read_the_text_that_the_network_is_given(name: str, seam: str) -> None:
    family, pipe = FAMILIES[name], FAMILIES[name].build()
    given: list[tuple[Any, Any]] = []

    def remember(_: Any, __: Any, named: dict[str, Any]) -> None:
        given.append((named["encoder_hidden_states"], named.get("encoder_attention_mask")))

    handle = pipe.transformer.register_forward_pre_hook(remember, with_kwargs=True)
    seen: dict[str, Any] = {}
    with erta.attach(pipe, [Texts(seen=seen)], seam=seam) as run:
        family.run(pipe, steps=1)
    handle.remove()
    assert run.traces[0].network_calls == len(seen) > 0
    for (embedded, mask), (text, attention) in zip(seen.values(), given, strict=False):
        assert torch.equal(embedded, text)
        expected = attention > 0 if attention is not None else text.abs().amax(-1) > 0
        assert torch.equal(mask, expected)
        assert mask.any()


def test_a_network_without_text_offers_none() -> None:
    with pytest.raises(CapabilityError, match="requires signal:prompt, signal:prompt_mask"):
        erta.attach(FAMILIES["unconditional"].build(), [Texts(seen={})])


def blocks_run(pipe: Any) -> list[int]:
    """Counts how often the first block of Wan really runs."""
    counted = [0]
    attention = pipe.transformer.blocks[0].attn1

    def count(*_: Any) -> None:
        counted[0] += 1

    attention.register_forward_hook(count)
    return counted


@pytest.mark.parametrize("seam", ["latent", "trunk"])
def test_a_branch_that_is_left_out_runs_no_block(seam: str) -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    plain = family.run(pipe, steps=10)
    counted = blocks_run(pipe)
    policies = [BranchSubstitute(codebook=(0.2,) * 10, threshold=0.5), SkipPolicy(every=2)]
    with erta.attach(pipe, policies, seam=seam) as run:
        latents = family.run(pipe, steps=10)
    (trace,) = run.traces
    assert counted[0] == trace.network_calls == 6 + 2
    real = [c.index for c in trace.calls() if c.branch == "uncond" and c.computed]
    assert real == [0, 6]
    assert latents.isfinite().all()
    assert not torch.equal(latents, plain)


def test_at_the_trunk_seam_the_head_sees_the_branch_s_own_input() -> None:
    """By hand: the blocks' residual of `cond`, on top of `uncond`'s own embedded latents."""
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    into: list[torch.Tensor] = []
    out: list[torch.Tensor] = []
    pipe.transformer.patch_embedding.register_forward_hook(
        lambda _, __, o: into.append(o.flatten(2).transpose(1, 2).clone())
    )
    pipe.transformer.norm_out.register_forward_pre_hook(lambda _, a: out.append(a[0].clone()))
    with erta.attach(
        pipe, [BranchSubstitute(codebook=(0.2,) * 3, threshold=0.5)], seam="trunk"
    ) as run:
        family.run(pipe, steps=3)
    calls = list(run.traces[0].calls())
    assert [c.computed for c in calls] == [True, True, True, False, True, False]
    for k in (3, 5):
        lent = (out[k - 1] - into[k - 1].float()) + into[k].float()
        assert torch.allclose(out[k], lent, atol=1e-5)


def test_each_network_of_two_lends_its_own() -> None:
    policies = [BranchSubstitute(codebook=(0.2,) * 8, threshold=0.5)]
    _, run = run_steps("wan22", policies, 8)
    (trace,) = run.traces
    networks = {call.index: call.model for call in trace.calls()}
    switch = min(i for i, name in networks.items() if name == "transformer_2")
    real = [c.index for c in trace.calls() if c.branch == "uncond" and c.computed]
    # nothing of the first network serves the second, whose sum starts anew
    assert real == [*range(0, switch, 3), *range(switch, 8, 3)]
    assert 0 < switch < 8


def test_batched_guidance_is_refused_in_the_second_step() -> None:
    with pytest.raises(
        CapabilityError, match=r"the branches of this run are cond_uncond; .*batched"
    ):
        run_steps("cogvideox", [PromptTea(model="cogvideox1.5-5b")], 4)
    _, run = run_steps("cogvideox", [PromptTea(model="cogvideox1.5-5b", substitute=False)], 4)
    assert run.traces[0].network_calls >= 2


def test_requests_of_one_attachment_keep_apart() -> None:
    policies = [BranchSubstitute(codebook=(0.2,) * 6, threshold=0.5)]
    expected, _ = run_steps("wan-euler", policies, 6)
    pipe, family = FAMILIES["wan-euler"].build(), FAMILIES["wan-euler"]
    with erta.attach(pipe, policies, seam="trunk") as run:
        family.run(pipe, steps=3)
        assert torch.equal(family.run(pipe, steps=6), expected)
    assert len(run.traces) == 2


# -------------------------------------------------------------------------- the bundled model
@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    from erta_integrations.shapes_wan.model import load_model

    return load_model()


def test_the_own_loop_offers_what_the_block_stack_is_given(model: Any) -> None:
    """The signals of the bundled model are those of its transformer's own modules."""
    seen: dict[str, torch.Tensor] = {}
    embedder = model.transformer.condition_embedder
    handle = embedder.register_forward_hook(
        lambda _, __, out: seen.update(timestep_embedding=out[0], timestep_projection=out[1])
    )
    x, times = torch.zeros(2, *model.latent_shape), torch.tensor([700.0, 700.0])
    embeds = model.encode(["a red circle moving left", "a green square moving up"])
    model(x, times, embeds)
    handle.remove()
    for name, signal in model.signals().items():
        assert torch.equal(signal(x, times, embeds), seen[name]), name


def test_the_bundled_model_is_calibrated_and_accelerated_without_internet(model: Any) -> None:
    calibration, held_out = model.demo_prompts()
    sampler = Sampler(num_steps=10, guidance=CFG(scale=3.0))
    profiles = {
        type(profiler): sampler.calibrate(model, calibration[:2], profiler=profiler)
        for profiler in (RegressionProfiler(), CodebookProfiler())
    }
    words = PromptProfiler(simple=tuple(calibration[:3]), complex=tuple(calibration[3:7]))
    references = Sampler(num_steps=1, guidance=CFG(scale=3.0)).calibrate(
        model, words.calibration_prompts, profiler=words
    )
    policy = PromptTea(
        profile=profiles[RegressionProfiler],
        references=references,
        low=0.01,
        high=0.2,
        codebook=profiles[CodebookProfiler],
        codebook_threshold=0.3,
    )
    result = Sampler([policy], num_steps=10, guidance=CFG(scale=3.0)).sample(model, held_out[:1])
    (trace,) = result.traces
    lent = [c for c in trace.calls() if c.source_branch == "cond"]
    assert 2 < trace.network_calls < 20
    assert lent
    assert all("threshold" in s.calls[0].reason for s in trace.steps[1:])
    assert result.samples.isfinite().all()


def test_a_pipeline_embeds_the_reference_prompts() -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    profiler = PromptProfiler(simple=("one",), complex=("two",))
    with erta.attach(pipe, [profiler]) as run:
        for text in profiler.calibration_prompts:
            run.prompts = [text]
            family.run(pipe, steps=1)
    profile = run.profile()
    assert profile.statistics["samples"].tolist() == [1.0, 1.0]
    rule = PromptTeaRule(coefficients=PLANE, signal="timestep_projection")
    policy = PromptThreshold(policy=rule, references=profile, low=0.2, high=0.4)
    with erta.attach(pipe, [policy], seam="trunk") as run:
        family.run(pipe, steps=6)
    # both prompts are the family's own, so that rho is 1/2
    assert "threshold 0.300" in run.traces[0].steps[1].calls[0].reason
