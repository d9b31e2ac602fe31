"""A step whose network call is read for more than its answer is not reused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.pipeline._observers import find_gradient, summarise
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted
from tiny_pipelines._stable_diffusion import build_sd

EVERY, SOME = SkipPolicy(every=1), SkipPolicy(every=2)
SD, FLUX = FAMILIES["sd"], FAMILIES["flux"]


def build_sag() -> Any:
    return build_sd("StableDiffusionSAGPipeline")


# ------------------------------------------------------------------------------- hooks
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("scale", [7.5, 1.0], ids=["guided", "alone"])
def test_self_attention_guidance_is_refused_at_its_first_reused_step(scale: float) -> None:
    plain, pipe = build_sag(), build_sag()
    expected = SD.run(plain, guidance_scale=scale)
    with attach(pipe, [SOME]) as run:
        with pytest.raises(CapabilityError, match=r"unet .*mid_block.attentions.0"):
            SD.run(pipe, guidance_scale=scale)
        (trace,) = run.traces
        assert [step.index for step in trace.steps] == [0]
        assert trace.reused_calls == 0
    with attach(pipe, [EVERY]) as run:
        assert torch.equal(SD.run(pipe, guidance_scale=scale), expected)
    assert len(run.traces[0].steps) == 6


def hooking(
    register: Callable[[Any, Callable[..., None]], Any], at: int = 0
) -> Callable[..., dict[str, Any]]:
    """A callback that sets a hook after one step."""

    def callback(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == at:
            register(pipe, lambda *_: None)
        return {}

    return callback


INNER: dict[str, Callable[[Any, Callable[..., None]], Any]] = {
    "forward": lambda pipe, hook: pipe.transformer.proj_out.register_forward_hook(hook),
    "pre": lambda pipe, hook: pipe.transformer.proj_out.register_forward_pre_hook(hook),
    "deep": lambda pipe, hook: pipe.transformer.transformer_blocks[1].attn.register_forward_hook(
        hook
    ),
}


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("at", [0, 2])
def test_a_hook_that_is_set_within_a_request_is_refused(kind: str, at: int, seam: str) -> None:
    pipe = FLUX.build()
    with attach(pipe, [SOME], seam=seam) as run:
        with pytest.raises(CapabilityError, match=r"was set on .* since the request began"):
            FLUX.run(pipe, callback_on_step_end=hooking(INNER[kind], at))
        # the next reused step is the one that is refused
        assert [step.index for step in run.traces[0].steps] == [*range(at + 1)]
        # then the hook was there before, as the user's own
        FLUX.run(pipe)
    assert run.traces[1].reused_calls > 0


def test_a_hook_on_the_network_itself_is_always_called() -> None:
    pipe = FLUX.build()
    seen: list[Tensor] = []

    def register(pipe: Any, _: Any) -> None:
        pipe.transformer.register_forward_hook(lambda m, a, output: seen.append(output[0]))

    with attach(pipe, [SOME]) as run:
        FLUX.run(pipe, callback_on_step_end=hooking(register))
    assert run.traces[0].reused_calls > 0
    assert len(seen) == 5


def test_a_hook_that_was_removed_again_observes_nothing() -> None:
    pipe = FLUX.build()

    def register(pipe: Any, hook: Any) -> None:
        pipe.transformer.proj_out.register_forward_hook(hook).remove()

    with attach(pipe, [SOME]) as run:
        FLUX.run(pipe, callback_on_step_end=hooking(register))
    assert run.traces[0].reused_calls > 0


def test_hooks_elsewhere_and_hooks_from_before_are_left_alone() -> None:
    pipe = FLUX.build()
    other = nn.Linear(1, 1)
    with attach(pipe, [SOME]) as run, counted(pipe, FLUX) as made:
        FLUX.run(
            pipe, callback_on_step_end=hooking(lambda _, hook: other.register_forward_hook(hook))
        )
    assert len(made) == run.traces[0].network_calls == 4


# ---------------------------------------------------------------------------- processors
class Plain:
    """A user's own processor, which keeps nothing."""

    def __init__(self) -> None:
        self.inner, self.strength = AttnProcessor2_0(), 0.5

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.inner(attn, hidden_states, *args, **kwargs)
        return output * self.strength


class Keeping(Plain):
    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.seen = super().__call__(attn, hidden_states, *args, **kwargs)
        return self.seen


class Store:
    """The store of attention maps that attend-and-excite shares among its processors."""

    def __init__(self) -> None:
        self.maps: dict[str, list[Tensor]] = {"up": [], "down": []}


class Sharing(Plain):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = super().__call__(attn, hidden_states, *args, **kwargs)
        self.store.maps["up"].append(output)
        return output


class OnTheModule(Plain):
    """Leaves its maps on the attention, as that of pix2pix-zero does."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attn.attn_probs = super().__call__(attn, hidden_states, *args, **kwargs)
        output: Tensor = attn.attn_probs
        return output


STORING: dict[str, Callable[[], Any]] = {
    "Keeping": Keeping,
    "Sharing": lambda: Sharing(Store()),
    "OnTheModule": OnTheModule,
}


@pytest.mark.parametrize("name", STORING)
def test_a_processor_that_stores_what_it_sees_is_refused(name: str) -> None:
    plain, pipe = SD.build(), SD.build()
    for one in (plain, pipe):
        one.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor = STORING[name]()
    expected = SD.run(plain)
    with attach(pipe, [SOME]) as run:
        match = f"its attention processor {name} keeps what it computes"
        with pytest.raises(CapabilityError, match=match):
            SD.run(pipe)
        assert [step.index for step in run.traces[0].steps] == [0]
    with attach(pipe, [EVERY]):
        assert torch.equal(SD.run(pipe), expected)


def make_attend_and_excite(pipe: Any) -> dict[str, Any]:
    from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
        pipeline_stable_diffusion_attend_and_excite as theirs,
    )

    store = theirs.AttentionStore((4, 4))
    names = list(pipe.unet.attn_processors)
    store.num_att_layers = len(names)
    return {name: theirs.AttendExciteAttnProcessor(store, name.split("_")[0]) for name in names}


def make_ledits(pipe: Any) -> dict[str, Any]:
    from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as theirs

    store = theirs.LeditsAttentionStore(average=True, batch_size=1, max_resolution=16)
    names = list(pipe.unet.attn_processors)
    return {
        name: theirs.LEDITSCrossAttnProcessor(store, name.split("_")[0], False, 0)
        if "attn2" in name
        else AttnProcessor2_0()
        for name in names
    }


@pytest.mark.parametrize("make", [make_attend_and_excite, make_ledits])
def test_the_stores_of_diffusers_own_pipelines_are_refused(make: Callable[..., Any]) -> None:
    """They keep maps only while gradients are recorded, or of guided calls."""
    pipe = SD.build()
    text = SD.inputs(1)["prompt_embeds"]

    def request() -> None:
        pipe.unet.set_attn_processor(make(pipe))
        pipe.scheduler.set_timesteps(6)
        latents = torch.ones(2, 4, 8, 8)
        for time in pipe.scheduler.timesteps:
            with torch.enable_grad():
                output = pipe.unet(latents, time, text.expand(2, -1, -1), return_dict=False)[0]
            latents = pipe.scheduler.step(output.detach(), time, latents)[0]

    request()
    with attach(pipe, [SOME]), pytest.raises(CapabilityError, match="keeps what it computes"):
        request()


def test_a_processor_that_keeps_nothing_is_reused() -> None:
    pipe = SD.build()
    pipe.unet.set_attn_processor(Plain())
    with attach(pipe, [SOME]) as run:
        SD.run(pipe)
    assert run.traces[0].network_calls == 4


def test_what_a_user_sets_on_a_processor_is_a_change_and_no_store() -> None:
    pipe = SD.build()
    processor = Plain()
    pipe.unet.set_attn_processor(processor)

    def weaker(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        processor.strength = 0.5 if step < 2 else 0.4
        return {}

    with attach(pipe, [SkipPolicy(steps=(0,))]) as run:
        SD.run(pipe, callback_on_step_end=weaker)
    models = [call.model for call in run.traces[0].calls()]
    assert models == 3 * ["unet"] + 3 * ["unet#2"]


def test_a_summary_tells_what_a_store_holds() -> None:
    store = Store()
    before = summarise(store, 4)
    assert summarise(store, 4) == before
    store.maps["down"].append(torch.zeros(1))
    after = summarise(store, 4)
    assert after != before
    store.maps["down"][0].add_(1)
    assert summarise(store, 4) != after


# ----------------------------------------------------------------------------- gradients
def test_a_gradient_through_a_reused_step_is_refused() -> None:
    """A pipeline that updates its latents by a gradient asks for one of the network's input."""
    pipe = SD.build()
    text = SD.inputs(1)["prompt_embeds"]

    def request() -> Tensor:
        pipe.scheduler.set_timesteps(6)
        latents = torch.ones(1, 4, 2, 2)
        for time in pipe.scheduler.timesteps:
            with torch.enable_grad():
                asked = latents.detach().requires_grad_(True)
                output = pipe.unet(asked * 1.0, time, text, return_dict=False)[0]
                (slope,) = torch.autograd.grad(output.square().sum(), asked)
            with torch.no_grad():
                latents = pipe.scheduler.step(output, time, latents - 0.01 * slope)[0]
        return latents

    expected = request()
    with attach(pipe, [SOME]) as run, pytest.raises(CapabilityError, match="requires a gradient"):
        request()
    assert run.traces[0].reused_calls == 0
    with attach(pipe, [EVERY]):
        assert torch.equal(request(), expected)


def test_only_a_gradient_that_somebody_asked_for_counts() -> None:
    layer = nn.Linear(2, 2)
    made = layer(torch.ones(1, 2))  # where nobody said no_grad
    assert made.requires_grad
    assert find_gradient({"sample": made, "none": None, "flag": True}) == ""
    asked = torch.ones(1, 2, requires_grad=True)
    assert find_gradient({"sample": torch.ones(1), "text": [torch.ones(1), asked]}) == "text"
    assert find_gradient({"sample": (asked * 2).unsqueeze(0)}) == "sample"
    assert find_gradient({"weights": layer.weight}) == ""
