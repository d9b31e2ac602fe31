"""DeepCache through UNets and unmodified pipelines, beside its oracle and the published helper."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from erta_bench.shapes_image import load_unet
from erta_framework import (
    Call,
    Decision,
    Engine,
    Interval,
    Policy,
    Reuse,
    SessionInfo,
    Step,
    Traits,
    hookimpl,
)
from erta_framework.errors import CapabilityError
from erta_framework.modules import ModuleRun, ModuleSeam, PlaceFinder, find_cut
from erta_framework.session import make_site
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_policies.deepcache import CenteredSteps, DeepCache
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, drawn
from unet_cases import CASES, PAIRS, build_deep, built, inputs, recorded, replaced, run

STEPS = 6
NAMES = ("sd", "sd-img2img", "sdxl", "sdxl-controlnet", "animatediff", "unconditional")


def sample(name: str, policies: Any, pipe: Any = None, steps: int = STEPS) -> tuple[Tensor, Any]:
    """Latents and trace of one request through an unmodified pipeline."""
    family = FAMILIES[name]
    pipe = family.build() if pipe is None else pipe
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, steps)
    return latents, attached.traces[0]


def plain(name: str, steps: int = STEPS) -> Tensor:
    family = FAMILIES[name]
    latents: Tensor = family.run(family.build(), steps)
    return latents


# ------------------------------------------------------------------------- the oracle
def answer_steps(name: str, policy: DeepCache) -> list[Tensor]:
    """What a UNet predicts at each step under a policy, with inputs that do not depend on it."""
    network, x = built(name), inputs(name, 0)["sample"]
    steps = tuple(range(STEPS))
    engine = Engine([policy])
    owners = {"unet": engine.own_places("unet", network, PlaceFinder())}
    info = SessionInfo(
        sigmas=tuple(1 - step / STEPS for step in (*steps, STEPS)),
        times=tuple(900.0 - 100 * step for step in steps),
        shape=tuple(x.shape),
        dtype=x.dtype,
        device=x.device,
        capabilities=frozenset({"modules"}),
    )
    found: list[Tensor] = []
    with ModuleSeam({"unet": network}, owners) as seam, engine.session(info) as session:
        modules, site = ModuleRun(seam, session), make_site("unet", "cond")
        for step in steps:
            session.begin(info_interval(info, step))
            answer = modules.run("unet", site, x, lambda step=step: run(name, step))
            session.forward(answer, lambda answer=answer: answer)
            session.settle()
            session.end(answer)
            found.append(answer)
    return found


def info_interval(info: SessionInfo, step: int) -> Interval:
    times = (*info.times, 0.0)
    return Interval(step, info.sigmas[step], info.sigmas[step + 1], times[step], times[step + 1])


@pytest.mark.parametrize(("name", "branch"), PAIRS)
def test_a_reused_step_is_the_network_with_the_tensor_that_enters_again_replaced(
    name: str, branch: int
) -> None:
    found = answer_steps(name, DeepCache(interval=3, branch=branch))
    entry = find_cut(built(name), branch).members[-1]
    for step, answer in enumerate(found):
        with recorded(built(name), (entry,)) as kept:
            oracle = run(name, step - step % 3)
        if step % 3:
            with replaced(built(name), kept):
                oracle = run(name, step)
        assert torch.equal(answer, oracle)


@pytest.mark.parametrize("name", CASES)
def test_an_uneven_schedule_refreshes_at_its_steps(name: str) -> None:
    found = answer_steps(name, DeepCache(when=SkipPolicy(steps=(0, 1, 4, 5))))
    full = [run(name, step) for step in range(STEPS)]
    assert [torch.equal(a, b) for a, b in zip(found, full, strict=True)] == [
        step in (0, 1, 4, 5) for step in range(STEPS)
    ]


# ------------------------------------------------------------------------- pipelines
@pytest.mark.parametrize("name", NAMES)
def test_refreshing_at_every_step_changes_no_bit(name: str) -> None:
    latents, trace = sample(name, [DeepCache(interval=1)])
    assert torch.equal(latents, plain(name))
    assert trace.work == trace.network_samples


def test_refreshing_at_every_step_changes_no_bit_of_shapes_unet() -> None:
    model = load_unet()
    pipe = pipeline(model)

    def answer() -> Tensor:
        asked = request(model, ["a red circle left"], seeds=[3], num_steps=4)
        return samples_of(model, pipe(**asked))

    expected = answer()
    with attach(pipe, [DeepCache(interval=1, branch=1)]):
        assert torch.equal(answer(), expected)
    with attach(pipe, [DeepCache(interval=2, branch=1)]):
        assert not torch.equal(answer(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_deep_part_runs_once_in_so_many_executed_steps(name: str) -> None:
    pipe = FAMILIES[name].build()
    counts = {"middle": 0, "out": 0}

    def count(key: str) -> Any:
        return lambda *_: counts.__setitem__(key, counts[key] + 1)

    # inside of what is left out as a whole, so that no gate answers for it
    pipe.unet.mid_block.resnets[0].register_forward_pre_hook(count("middle"))
    pipe.unet.conv_out.register_forward_pre_hook(count("out"))
    latents, trace = sample(name, [DeepCache(interval=3)], pipe)
    calls = trace.network_calls // len(trace.steps)
    assert latents.isfinite().all()
    assert counts["out"] == trace.network_calls
    # img2img leaves out the first steps: it counts from the first that runs
    assert counts["middle"] == calls * -(-len(trace.steps) // 3)
    assert not torch.equal(latents, plain(name))
    assert trace.work < trace.network_samples


def test_one_tensor_of_the_width_of_the_first_stage_is_kept() -> None:
    _, trace = sample("sd", [DeepCache(interval=2)])
    # both branches of guidance in one batch; the unit of branch 0 has 8 + 8 channels at 8 x 8
    assert trace.module_bytes == 2 * 8 * 8 * 8 * 4


def list_refreshed(trace: Any) -> dict[int, int]:
    """Whether the deep part ran, at each step at which the network ran."""
    return {call.index: call.sites["cut"][0] for call in trace.calls() if call.sites}


def test_beside_a_step_rule_it_counts_ages() -> None:
    rule = SkipPolicy(steps=(0, 1, 3, 4, 5, 8, 9))
    _, trace = sample("sd", [rule, DeepCache(interval=3)], steps=10)
    ran = list_refreshed(trace)
    # the kept tensor is 3 steps old at 3, and 5 at 8; an index modulo 3 would refresh at 0, 3, 9
    assert ran == {0: 1, 1: 0, 3: 1, 4: 0, 5: 0, 8: 1, 9: 0}


def test_beside_a_step_rule_that_leaves_out_its_schedule_it_makes_up_for_it() -> None:
    rule = SkipPolicy(steps=(0, 2, 5, 6, 7))
    listed = DeepCache(when=SkipPolicy(steps=(0, 1, 6, 7)))
    _, trace = sample("sd", [rule, listed], steps=8)
    ran = list_refreshed(trace)
    assert ran == {0: 1, 2: 1, 5: 0, 6: 1, 7: 1}


class Listed(Policy):
    """Sample k computes at the steps listed for it, in both copies that guidance makes of it."""

    traits = Traits(decides="sample")
    steps: tuple[tuple[int, ...], ...] = ()

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        mask = [step.index not in own for own in self.steps]
        return Reuse("listed", mask=mask * (call.x.shape[0] // len(self.steps)))


def test_samples_of_a_batch_keep_a_tensor_each() -> None:
    family = FAMILIES["sd"]
    steps = ((0, 1, 2, 5), (0, 3, 5))
    noise, text = drawn(2, 4, 8, 8).double(), drawn(2, 5, 16, seed=3).double()

    def answer(rows: slice) -> Tensor:
        pipe = family.build().to(torch.float64)  # a batch multiplies in another order
        given = {"prompt_embeds": text[rows], "negative_prompt_embeds": text[rows] + 0.5}
        # what is kept at step 0 serves to the end, whoever runs beside
        with attach(pipe, [Listed(steps=steps[rows]), DeepCache(interval=9)]):
            latents: Tensor = family.run(pipe, STEPS, latents=noise[rows].clone(), **given)
        return latents

    together = answer(slice(0, 2))
    alone = torch.cat([answer(slice(0, 1)), answer(slice(1, 2))])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_a_schedule_around_a_step_in_a_pipeline() -> None:
    latents, trace = sample("sd", [DeepCache(when=CenteredSteps(interval=3, center=3))], steps=9)
    ran = [step.index for step in trace.steps if step.calls[0].sites["cut"][0]]
    assert ran == list(CenteredSteps(interval=3, center=3).plan(9).computed)
    assert latents.isfinite().all()


def test_what_is_no_unet_and_a_skip_that_is_not_there_are_refused() -> None:
    with pytest.raises(CapabilityError, match=r"cannot have Cut\(branch=0\) in transformer"):
        attach(FAMILIES["flux"].build(), [DeepCache()])
    with pytest.raises(CapabilityError, match="give a branch from 0 to 3"):
        attach(FAMILIES["sd"].build(), [DeepCache(branch=4)])


# ------------------------------------------------------------------ the published helper
def run_helper(pipe: Any, interval: int, branch: int, steps: int) -> Tensor:
    """The package DeepCache 0.1.1 on a pipeline."""
    helper = pytest.importorskip("DeepCache").DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    latents: Tensor = FAMILIES["sd"].run(pipe, steps)
    helper.disable()
    return latents


def build_sd(unet: Any = None) -> Any:
    pipe = FAMILIES["sd"].build()
    if unet is not None:
        pipe.register_modules(unet=unet)
    return pipe


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
@pytest.mark.parametrize(("branch", "theirs"), [(0, 0), (1, 1), (2, 3)])
def test_it_is_the_published_helper(interval: int, branch: int, theirs: int) -> None:
    # the helper counts three skips a stage, as Stable Diffusion has; this UNet has two
    expected = run_helper(build_sd(), interval, theirs, steps=7)
    latents, _ = sample("sd", [DeepCache(interval=interval, branch=branch)], steps=7)
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("branch", range(9))
def test_with_three_skips_a_stage_branches_are_those_of_the_helper(branch: int) -> None:
    expected = run_helper(build_sd(build_deep()), 2, branch, steps=4)
    pipe = build_sd(build_deep())
    latents, _ = sample("sd", [DeepCache(interval=2, branch=branch)], pipe, steps=4)
    assert torch.equal(latents, expected)
    assert not torch.equal(latents, FAMILIES["sd"].run(build_sd(build_deep()), 4))


def test_repeated_timesteps_do_not_confuse_it() -> None:
    """The helper searches the timestep among those of the scheduler; Heun has each twice."""
    pipe = build_sd()
    pipe.scheduler = diffusers.HeunDiscreteScheduler()
    latents, trace = sample("sd", [DeepCache(interval=2)], pipe)
    ran = [step.calls[0].sites["cut"][0] for step in trace.steps]
    assert ran == [1 - index % 2 for index in range(len(ran))]
    assert latents.isfinite().all()
