"""What changes inside a network, or in its conditioning, during a request starts a new history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from erta_integrations.diffusers import attach
from erta_integrations.diffusers.pipeline._branches import Branches
from erta_integrations.diffusers.pipeline._network_state import (
    NetworkState,
    NetworkWatch,
    freeze,
    get_version,
)
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, drawn

ONCE, EVERY = SkipPolicy(steps=(0, 5)), SkipPolicy(every=1)
SD, WAN = FAMILIES["sd"], FAMILIES["wan-euler"]
Change = Callable[[Any], None]


class ScaledProcessor(nn.Module):
    """An attention processor with weights and a scale, as those of IP-Adapters are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = [1.0], AttnProcessor2_0()

    def forward(self, attn: Any, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.inner(attn, *args, **kwargs)
        return output * self.scale[0]


ScaledProcessor.__module__ = "diffusers.models.attention_processor"  # as if it were theirs


def scale_adapter(pipe: Any) -> None:
    """`pipe.set_ip_adapter_scale` writes into the list of each processor."""
    for processor in pipe.unet.attn_processors.values():
        processor.scale[0] = 0.3


CHANGES: dict[str, tuple[Change, Change]] = {
    "FreeU on": (lambda _: None, lambda pipe: pipe.enable_freeu(0.5, 0.4, 1.5, 1.6)),
    "FreeU off": (
        lambda pipe: pipe.enable_freeu(0.5, 0.4, 1.5, 1.6),
        lambda pipe: pipe.disable_freeu(),
    ),
    "processors": (
        lambda _: None,
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
    ),
    "one processor": (
        lambda _: None,
        lambda pipe: (
            pipe.unet.mid_block.attentions[0]
            .transformer_blocks[0]
            .attn2.set_processor(AttnProcessor())
        ),
    ),
    "IP-Adapter scale": (
        lambda pipe: pipe.unet.set_attn_processor(
            {name: ScaledProcessor() for name in pipe.unet.attn_processors}
        ),
        scale_adapter,
    ),
    "IP-Adapter removed": (
        lambda pipe: pipe.unet.set_attn_processor(
            {name: ScaledProcessor() for name in pipe.unet.attn_processors}
        ),
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor2_0()),
    ),
    "fused projections": (lambda _: None, lambda pipe: pipe.unet.fuse_qkv_projections()),
}


def at_step(place: int, change: Change) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == place:
            change(pipe)
        return {}

    return callback


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_within_a_request_drops_its_history(what: str) -> None:
    before, change = CHANGES[what]
    plain, pipe = SD.build(), SD.build()
    for one in (plain, pipe):
        before(one)
    with attach(pipe, [ONCE]) as run:
        SD.run(pipe, callback_on_step_end=at_step(2, change))
    assert [(c.index, c.model, c.computed) for c in run.traces[0].calls()] == [
        (0, "unet", True),
        (1, "unet", False),
        (2, "unet", False),
        (3, "unet#2", True),
        (4, "unet#2", False),
        (5, "unet#2", True),
    ]
    # the next request begins with what is there now, and is one of that network
    with attach(pipe, [EVERY]) as run:
        again = SD.run(pipe)
    change(plain)
    assert torch.equal(again, SD.run(plain))
    assert {call.model for call in run.traces[0].calls()} == {"unet"}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_exact_where_nothing_is_skipped(what: str) -> None:
    before, change = CHANGES[what]
    plain, pipe = SD.build(), SD.build()
    for one in (plain, pipe):
        before(one)
    expected = SD.run(plain, callback_on_step_end=at_step(2, change))
    with attach(pipe, [EVERY]):
        assert torch.equal(SD.run(pipe, callback_on_step_end=at_step(2, change)), expected)


class Counting:
    """A processor that changes itself at every call, in a number that nobody reads."""

    def __init__(self) -> None:
        self.calls, self.inner = 0, AttnProcessor2_0()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        output: Tensor = self.inner(*args, **kwargs)
        return output


def test_what_a_network_changes_by_itself_is_no_change() -> None:
    watch, network = NetworkWatch(), nn.Module()
    network.attn = nn.Module()
    processor = Counting()
    network.attn.processor = processor
    for _ in range(3):
        assert watch.name_model("unet", network) == "unet"
        processor.calls += 1
        watch.settle("unet")
    processor.calls += 1
    assert watch.name_model("unet", network) == "unet#2"


def test_a_request_that_changes_nothing_has_one_history() -> None:
    pipe = SD.build()
    with attach(pipe, [SkipPolicy(every=2)]) as run:
        SD.run(pipe)
    assert {call.model for call in run.traces[0].calls()} == {"unet"}
    assert run.traces[0].reused_calls > 0


def test_the_scale_of_an_ip_adapter_is_read_off_its_processors() -> None:
    pipe = SD.build()
    own = {
        name: IPAdapterAttnProcessor2_0(16, 16) if "attn2" in name else AttnProcessor2_0()
        for name in pipe.unet.attn_processors
    }
    pipe.unet.set_attn_processor(own)
    watch = NetworkWatch()
    assert watch.name_model("unet", pipe.unet) == "unet"
    pipe.set_ip_adapter_scale(1.0)  # what it was
    assert watch.name_model("unet", pipe.unet) == "unet"
    pipe.set_ip_adapter_scale(0.4)
    assert watch.name_model("unet", pipe.unet) == "unet#2"
    pipe.set_ip_adapter_scale({"down": {"block_1": [0.1]}})
    assert watch.name_model("unet", pipe.unet) == "unet#3"


def test_a_network_without_attention_has_a_state() -> None:
    state = NetworkState(nn.Linear(2, 2))
    assert state.read() == state.read()


def test_a_setting_is_compared_as_it_was() -> None:
    value: dict[str, Any] = {"scale": [0.5, [1, 2]], "mask": torch.zeros(2)}
    before = freeze(value)
    assert freeze(value) == before
    value["scale"][1][0] = 3
    assert freeze(value) != before
    before = freeze(value)
    value["mask"].add_(1)
    assert freeze(value) != before


def test_a_tensor_of_inference_mode_has_no_count() -> None:
    with torch.inference_mode():
        assert get_version(torch.zeros(1)) == 0


# ---------------------------------------------------------------------------- conditioning
def write_in_place(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == 2:
        tensors["prompt_embeds"].mul_(0.5)
    return {}


def replace(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": tensors["prompt_embeds"] * 0.5} if step == 2 else {}


CALLBACKS = {"written in place": write_in_place, "replaced": replace}


@pytest.mark.parametrize("what", CALLBACKS)
@pytest.mark.parametrize("seam", ["latent", "trunk"])
def test_a_prompt_of_a_named_branch_that_changes(what: str, seam: str) -> None:
    """Wan names its branches; what is embedded is another text from step 3 on."""
    changes = {
        "callback_on_step_end": CALLBACKS[what],
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    plain, pipe = WAN.build(), WAN.build()
    expected = WAN.run(plain, **changes)
    with attach(pipe, [EVERY], seam=seam):
        assert torch.equal(WAN.run(pipe, **changes), expected)
    with attach(pipe, [ONCE], seam=seam) as run:
        WAN.run(pipe, **changes)
    calls = [c for c in run.traces[0].calls() if c.branch.startswith("cond")]
    assert [c.branch for c in calls] == 3 * ["cond"] + 3 * ["cond~2"]
    assert [c.computed for c in calls] == [True, False, False, True, False, True]


@pytest.mark.parametrize("what", CALLBACKS)
def test_a_prompt_of_a_branch_without_a_name_that_changes(what: str) -> None:
    changes = {
        "callback_on_step_end": CALLBACKS[what],
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    pipe = SD.build()
    with attach(pipe, [ONCE]) as run:
        SD.run(pipe, **changes)
    calls = list(run.traces[0].calls())
    assert [c.branch for c in calls] == 3 * ["call0"] + 3 * ["call1"]
    assert [c.computed for c in calls] == [True, False, False, True, False, True]


def name_steps(prompts: list[Tensor]) -> list[str]:
    branches, found = Branches(), []
    for prompt in prompts:
        branches.begin_step()
        found.append(branches.name("cond", {"encoder_hidden_states": prompt})[0])
    return found


def test_prompts_made_anew_for_every_call_are_one_branch() -> None:
    prompt = drawn(1, 4, 8)
    assert name_steps([prompt.clone() for _ in range(5)]) == 5 * ["cond"]


def test_prompts_made_anew_are_compared_once() -> None:
    branches, prompt = Branches(), drawn(1, 4, 8)
    compared: list[str] = []

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, *rest: Any, **kwargs: Any) -> Any:
            if func is torch.ops.aten.equal.default:
                compared.append(str(func))
            return func(*rest[1], **(rest[2] if len(rest) > 2 else {}))

    with Counts():
        for _ in range(5):
            branches.begin_step()
            branches.name("cond", {"encoder_hidden_states": prompt.clone()})
    assert len(compared) == 1


def test_a_prompt_that_is_replaced_at_every_step_never_lends_its_history() -> None:
    found = name_steps([drawn(1, 4, 8, seed=seed) for seed in range(4)])
    assert found == ["cond", "cond~2", "cond~3", "cond~4"]


def test_a_prompt_may_change_twice() -> None:
    one, two, three = drawn(1, 4, 8, seed=1), drawn(1, 4, 8, seed=2), drawn(1, 4, 8, seed=3)
    found = name_steps([one, one, two, two, three, three])
    assert found == ["cond", "cond", "cond~2", "cond~2", "cond~3", "cond~3"]


def test_conditioning_that_comes_and_goes_is_another() -> None:
    branches, found = Branches(), []
    text, pooled = drawn(1, 4, 8), drawn(1, 8)
    for given in ({}, {"pooled_projections": pooled}, {"pooled_projections": pooled}, {}):
        branches.begin_step()
        found.append(branches.name("cond", {"encoder_hidden_states": text, **given})[0])
    assert found == ["cond", "cond~2", "cond~2", "cond~3"]


def test_a_view_of_the_same_prompt_is_the_same() -> None:
    both = drawn(2, 4, 8)
    assert name_steps([both[:1], both[:1], both[0:1]]) == ["cond"] * 3
