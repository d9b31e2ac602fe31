"""The trunk seam: only the block stack is skipped, on unmodified pipelines of many families."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erta_framework import FunctionNetwork, Site, Traits

pytest.importorskip("diffusers")
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanDiT2DModel

from erta_framework import (
    Call,
    Compute,
    Engine,
    Interval,
    Policy,
    Reuse,
    Seam,
    SessionInfo,
    Step,
    hookimpl,
)
from erta_framework.errors import CapabilityError, InputError, ProtocolError
from erta_integrations.diffusers import attach, inspect
from erta_integrations.diffusers.trunk import discover
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted, flow

EVERY = SkipPolicy(every=1)
SOME = SkipPolicy(every=2)  # of 6 steps: 0, 2, 4 and the last
COMPUTED, STEPS = 4, 6
TRUNKS = ("wan-euler", "wan-unipc", "wan22", "wan-i2v", "flux", "flux-true-cfg", "flux-kontext",
          "qwen-image", "sd3", "cogvideox", "hunyuan-video", "ltx", "pixart-sigma", "sana",
          "lumina2", "aura-flow", "chroma", "mochi")  # fmt: skip


@functools.cache
def built(name: str) -> Any:
    return FAMILIES[name].build()


def networks(name: str) -> list[nn.Module]:
    parts = dict.fromkeys(path.partition(".")[0] for path in FAMILIES[name].inner)
    return [getattr(built(name), part) for part in parts]


def blocks(name: str) -> list[nn.Module]:
    """The blocks of the main stack; refiners that run before it are left out."""
    return [
        block.module
        for network in networks(name)
        for stack, found in discover(network).items()
        for block in found
        if "refiner" not in stack
    ]


@contextmanager
def inside(name: str) -> Iterator[list[int]]:
    """Counts calls of whatever lies inside the blocks, which only a real run reaches."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    inner = [m for b in blocks(name) for m in b.modules() if m is not b]
    handles = [m.register_forward_pre_hook(add) for m in inner]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@functools.cache
def full(name: str) -> tuple[Tensor, int, int]:
    """Latents without an engine, calls inside the blocks and network calls of one request."""
    with inside(name) as count, counted(built(name), FAMILIES[name]) as calls:
        sample = FAMILIES[name].run(built(name))
    return sample, count[0], len(calls)


@functools.cache
def skipped(name: str) -> Tensor:
    with attach(built(name), [SOME], seam="trunk"):
        return FAMILIES[name].run(built(name))


class Stop(Exception):
    """What a user's own code raises."""


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("policies", [[], [EVERY]], ids=["no-policy", "every-step"])
def test_a_run_that_skips_nothing_is_bit_identical(name: str, policies: list[Any]) -> None:
    sample, within, calls = full(name)
    with attach(built(name), policies, seam="trunk") as run, inside(name) as count:
        assert torch.equal(FAMILIES[name].run(built(name)), sample)
    assert count[0] == within
    assert (run.traces[0].network_calls, run.traces[0].reused_calls) == (calls, 0)


@pytest.mark.parametrize("name", TRUNKS)
def test_reused_steps_run_no_block_but_the_rest(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    sample, within, calls = full(name)
    with attach(pipe, [SOME], seam="trunk") as run:
        with inside(name) as count, counted(pipe, family) as heads:
            first = family.run(pipe)
        assert torch.equal(family.run(pipe), first)
    (trace, again) = run.traces
    each = within // calls
    assert within == each * calls
    # where a second network takes over, its first step computes whatever the schedule says
    assert trace.network_calls * each == count[0]
    takeover = len(networks(name)) == 2
    assert trace.network_calls >= family.calls * COMPUTED
    assert takeover or trace.network_calls == family.calls * COMPUTED
    assert trace.network_calls + trace.reused_calls == calls
    assert len(heads) == calls
    assert again.network_calls == trace.network_calls
    assert first.isfinite().all()
    assert not torch.equal(first, sample)


@pytest.mark.parametrize("name", TRUNKS)
def test_an_error_detach_and_other_requests_leave_nothing_behind(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    usual = skipped(name)
    before = [dict(vars(module)) for module in blocks(name)]
    changes: list[dict[str, Any]] = [{"batch": 2}, dict(family.other), {"steps": 8}]
    fresh = []
    for change in changes:
        with attach(pipe, [SOME], seam="trunk"):
            fresh.append(family.run(pipe, **change))

    def stop(*_: Any) -> None:
        raise Stop

    with attach(pipe, [SOME], seam="trunk"):
        handle = next(m for m in blocks(name)[-1].modules() if not [*m.children()])
        hook = handle.register_forward_pre_hook(stop)
        with pytest.raises(Stop):
            family.run(pipe)
        hook.remove()
        for change, sample in zip(changes, fresh, strict=True):
            assert torch.equal(family.run(pipe, **change), sample), change
        assert torch.equal(family.run(pipe), usual)
    for module, earlier in zip(blocks(name), before, strict=True):
        assert vars(module).keys() == earlier.keys()
        assert all(vars(module)[key] is value for key, value in earlier.items())
    assert torch.equal(family.run(pipe), full(name)[0])


# --------------------------------------------------------- an independent reference
def wan_parts(
    network: Any, latents: Tensor, time: Tensor, text: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Wan by its real submodules: the prediction and the residual of the block stack."""
    batch, _, frames, height, width = latents.shape
    rope = network.rope(latents)
    h_in = network.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
    temb, projected, text, _ = network.condition_embedder(time, text, None, timestep_seq_len=None)
    h_out = h_in
    if residual is None:
        for block in network.blocks:
            h_out = block(h_out, text, projected.unflatten(1, (6, -1)), rope)
        residual = h_out - h_in
    else:
        h_out = h_in + residual
    shift, scale = (network.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    tokens = network.proj_out(network.norm_out(h_out.float()) * (1 + scale) + shift)
    tokens = tokens.reshape(batch, frames, height // 2, width // 2, 1, 2, 2, -1)
    tokens = tokens.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return tokens.flatten(6, 7).flatten(4, 5).flatten(2, 3), residual


@torch.no_grad()
def test_wan_equals_its_real_submodules_called_by_hand() -> None:
    family, pipe = FAMILIES["wan-euler"], built("wan-euler")
    latents = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    with attach(pipe, [SOME], seam="trunk"):
        got = family.run(pipe, latents=latents.clone(), guidance_scale=4.0)
    inputs = family.inputs(1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    kept: dict[str, Tensor | None] = {"cond": None, "uncond": None}
    x = latents
    for index, time in enumerate(scheduler.timesteps):
        predicted = {}
        for branch, text in (("cond", "prompt_embeds"), ("uncond", "negative_prompt_embeds")):
            old = kept[branch] if index in (1, 3) else None
            predicted[branch], kept[branch] = wan_parts(
                pipe.transformer, x, time.expand(1), inputs[text], old
            )
        v = predicted["uncond"] + 4.0 * (predicted["cond"] - predicted["uncond"])
        x = scheduler.step(v, time, x, return_dict=False)[0]
    assert torch.equal(got, x)


def test_the_head_is_told_the_current_time_on_reused_steps() -> None:
    pipe = built("wan-euler")
    told: list[Tensor] = []
    handle = pipe.transformer.condition_embedder.time_embedder.register_forward_hook(
        lambda _, given, output: told.append(output.clone())
    )
    heads: list[Tensor] = []
    end = pipe.transformer.proj_out.register_forward_hook(
        lambda _, given, output: heads.append(output.clone())
    )
    with attach(pipe, [SkipPolicy(steps=(0, 5))], seam="trunk") as run:
        FAMILIES["wan-euler"].run(pipe, guidance_scale=1.0)
    handle.remove()
    end.remove()
    assert run.traces[0].reused_calls == STEPS - 2
    assert len(told) == len(heads) == STEPS
    for later in range(2, STEPS - 1):
        assert not torch.equal(told[later], told[later - 1])
        assert not torch.equal(heads[later], heads[later - 1])


# ---------------------------------------------------------------------- policies
class Watch(Policy):
    """Reuses every other step, and keeps what it saw of the calls and signals."""

    traits = Traits(requires=frozenset({"signal:modulated_input", "signal:timestep_embedding"}))
    reason: str = "watch"

    @hookimpl
    def decide(self, step: Step, call: Call) -> Reuse | Compute:
        SEEN.append((step.index, call.x, call.feature("modulated_input")))
        TIMES.append(call.feature("timestep_embedding"))
        return Reuse(self.reason) if step.index % 2 else Compute(self.reason)


SEEN: list[Any] = []
TIMES: list[Tensor] = []


@pytest.mark.parametrize("name", ["flux", "wan-euler", "cogvideox", "ltx", "qwen-image"])
def test_signals_are_what_the_first_block_and_the_time_embedding_give(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    SEEN.clear()
    TIMES.clear()
    network = pipe.transformer
    first = blocks(name)[0]
    attention = first.attn1 if hasattr(first, "attn1") else first.attn
    given: list[Tensor] = []
    embedded: list[Tensor] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.append((args[0] if args else kwargs["hidden_states"]).clone())

    embedding = next(m for m in network.modules() if type(m).__name__ == "TimestepEmbedding")
    with attach(pipe, [Watch()], seam="trunk") as run:
        hooks = [
            attention.register_forward_pre_hook(keep, with_kwargs=True),
            embedding.register_forward_hook(lambda _, a, output: embedded.append(output.clone())),
        ]
        family.run(pipe)
        for hook in hooks:
            hook.remove()
    trace = run.traces[0]
    assert trace.reused_calls == family.calls * STEPS // 2
    assert len(given) == family.calls * STEPS // 2  # asking ran no attention
    computed_first = [seen for seen in SEEN if seen[0] % 2 == 0]
    assert computed_first
    for _, x, modulated in SEEN:
        assert modulated.shape == x.shape
        assert not torch.equal(modulated, x)
    # every computed and decided step gave its attention exactly the signal
    decided = [seen[2] for seen in computed_first]
    for signal in decided:
        assert any(torch.equal(signal, real) for real in given)
    assert all(any(torch.equal(time, real) for real in embedded) for time in TIMES)


def test_an_unavailable_signal_is_refused_with_the_model_class() -> None:
    class Probing(Watch):
        traits = Traits(requires=frozenset({"signal:probe"}))

    with pytest.raises(CapabilityError, match=r"signal:probe.*FluxTransformer2DModel"):
        attach(built("flux"), [Probing()], seam="trunk")
    with pytest.raises(CapabilityError, match=r"FluxTransformer2DModel.*seam='trunk'"):
        attach(built("flux"), [Watch()])


class AsksAnyway(Policy):
    """Decides to reuse and then runs the network after all."""

    @hookimpl
    def decide(self) -> Reuse:
        return Reuse("anyway")

    @hookimpl(wrapper=True)
    def forward(self, call: Call) -> Iterator[None]:
        call.compute()
        yield
        return call.compute()  # type: ignore[return-value]


class Runs(Policy):
    """Runs the network before it decides to compute."""

    @hookimpl
    def decide(self, call: Call) -> Compute:
        call.compute()
        return Compute("ran")


@pytest.mark.parametrize("policy", [AsksAnyway(), Runs()], ids=repr)
@pytest.mark.parametrize("name", ["wan-euler", "flux", "cogvideox"])
def test_a_policy_that_runs_the_network_itself_gets_the_true_output(
    name: str, policy: Policy
) -> None:
    sample, within, calls = full(name)
    with attach(built(name), [policy], seam="trunk") as run, inside(name) as count:
        assert torch.equal(FAMILIES[name].run(built(name)), sample)
    assert (run.traces[0].network_calls, run.traces[0].reused_calls) == (calls, 0)
    assert count[0] == within


class Scales(Policy):
    """Changes what was computed, also on the very first call."""

    traits = Traits(corrects_computed=True)
    factor: float = 1.0

    @hookimpl(wrapper=True)
    def forward(self, call: Call) -> Iterator[None]:
        output = yield
        assert call.seam is Seam.TRUNK
        return output * self.factor  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["wan-euler", "flux", "cogvideox"])
def test_corrected_trunk_outputs_reach_the_head(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    plain = family.run(pipe, steps=1)  # one step: only the first, learning call of each branch
    with attach(pipe, [Scales(factor=1.0)], seam="trunk"):
        assert torch.equal(family.run(pipe), full(name)[0])
        assert torch.equal(family.run(pipe, steps=1), plain)
    with attach(pipe, [Scales(factor=0.5)], seam="trunk"):
        assert not torch.equal(family.run(pipe, steps=1), plain)


# ------------------------------------------------------------------------ refusals
class ToyBlock(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.sin()


class SkipBlock(nn.Module):
    def forward(self, hidden_states: Tensor, skip: Tensor) -> Tensor:
        return hidden_states + skip


class Toy(nn.Module):
    """A network that adds something between its blocks, as a ControlNet does."""

    def __init__(self, between: float = 0.0, block: type[nn.Module] = ToyBlock) -> None:
        super().__init__()
        self.between = between
        self.blocks = nn.ModuleList([block() for _ in range(3)])

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
            if self.between:
                hidden_states = hidden_states + self.between
        return hidden_states * timestep


class ToyPipe:
    def __init__(self, transformer: nn.Module) -> None:
        self.transformer, self.scheduler = transformer, flow()
        self.components = {"transformer": transformer, "scheduler": self.scheduler}

    def __call__(self) -> Tensor:
        self.scheduler.set_timesteps(4)
        x = torch.linspace(-1, 1, 6).reshape(1, 3, 2)
        for time in self.scheduler.timesteps:
            x = self.scheduler.step(self.transformer(x, time), time, x, return_dict=False)[0]
        return x


def hunyuan_dit() -> Any:
    """HunyuanDiT: the second half of its blocks takes what the first half returned."""
    network = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=4,
        text_len=4,
        text_len_t5=4,
    )
    return ToyPipe(network)


def test_a_sum_between_blocks_is_refused_and_named() -> None:
    pipe = ToyPipe(Toy())
    with attach(pipe, [SOME], seam="trunk") as run:
        pipe()
    assert run.traces[0].reused_calls == 1
    glued = ToyPipe(Toy(between=0.1))
    with (
        attach(glued, [SOME], seam="trunk"),
        pytest.raises(CapabilityError, match=r"Toy changes what passes from blocks\.\d to"),
    ):
        glued()
    with attach(pipe, [SOME], seam="trunk"):  # added only later, as with a second request
        pipe()
        pipe.transformer.between = 0.1
        with pytest.raises(CapabilityError, match="ControlNet"):
            pipe()


@pytest.mark.parametrize(
    ("pipe", "why"),
    [
        (lambda: ToyPipe(Toy(block=SkipBlock)), "Toy has no trunk.*earlier blocks \\(skip\\)"),
        (lambda: hunyuan_dit(), "HunyuanDiT2DModel has no.*\\(HunyuanDiTBlock\\) take.*\\(skip\\)"),
        (lambda: built("sdxl"), "UNet2DConditionModel has no trunk.*earlier blocks"),
        (lambda: built("latte"), "LatteTransformer3DModel has no single trunk.*alternate"),
    ],
    ids=["skip", "hunyuan-dit", "unet", "alternating"],
)
def test_what_cannot_be_skipped_as_one_is_refused_at_attach(pipe: Any, why: str) -> None:
    with pytest.raises(CapabilityError, match=why):
        attach(pipe(), [SOME], seam="trunk")


def test_text_that_grows_between_blocks_is_refused_at_the_first_call() -> None:
    with (
        attach(built("hidream"), [SOME], seam="trunk"),
        pytest.raises(CapabilityError, match="HiDreamImageTransformer2DModel changes"),
    ):
        FAMILIES["hidream"].run(built("hidream"))


def test_an_asked_branch_must_be_answered_before_anything_else() -> None:
    x = torch.zeros(1, 2)
    info = SessionInfo((1.0, 0.0), (1000.0,), (1, 2), x.dtype, x.device)
    with Engine([]).session(info) as session:
        session.begin(Interval(0, 1.0, 0.0, 1000.0, 0.0))
        call = session.ask(Site(), x, FunctionNetwork(lambda: x + 1))
        assert not call.reused
        with pytest.raises(ProtocolError, match=r"'other'.*was asked.*before branch 'cond'"):
            session.ask(Site(branch="other"), x, FunctionNetwork(lambda: x))
        assert torch.equal(session.answer(call), x + 1)
        with pytest.raises(ProtocolError, match="but nothing was asked"):
            session.answer(call)
        other = session.ask(Site(branch="other"), x, FunctionNetwork(lambda: x + 2))
        with pytest.raises(ProtocolError, match=r"settle in step 0 before branch 'other'"):
            session.settle()
        session.answer(other)
        session.settle()
        session.end(x)
    assert session.trace.network_calls == 2


def test_compiled_blocks_stay_compiled_around_which_the_trunk_decides() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    pipe = ToyPipe(Toy())
    plain = ToyPipe(Toy())
    with attach(plain, [SOME], seam="trunk"):
        expected = plain()
    for block in pipe.transformer.blocks:
        block.compile(backend=backend, fullgraph=True)
    before = [vars(block)["_compiled_call_impl"] for block in pipe.transformer.blocks]
    with attach(pipe, [SOME], seam="trunk") as run:
        assert torch.equal(pipe(), expected)
    assert run.traces[0].reused_calls == 1
    assert graphs  # fullgraph raises on any break
    assert [vars(block)["_compiled_call_impl"] for block in pipe.transformer.blocks] == before


def test_blocks_that_are_compiled_after_attach_are_refused() -> None:
    pipe = ToyPipe(Toy())
    with attach(pipe, [SOME], seam="trunk"):
        for block in pipe.transformer.blocks:
            block.compile(backend="eager")
        with pytest.raises(CapabilityError, match=r"blocks\.0 of Toy was compiled after attach"):
            pipe()
    pipe = ToyPipe(Toy())
    with attach(pipe, [SOME]) as run:  # nothing of a block is patched here
        for block in pipe.transformer.blocks:
            block.compile(backend="eager")
        assert pipe().isfinite().all()
    assert run.traces[0].reused_calls == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_whole_compilation_and_unknown_seams_are_refused() -> None:
    pipe = ToyPipe(Toy())
    pipe.transformer = torch.compile(pipe.transformer)
    with pytest.raises(CapabilityError, match="Toy is compiled as a whole"):
        attach(pipe, [SOME], seam="trunk")
    with pytest.raises(InputError, match="'module'"):
        attach(ToyPipe(Toy()), [SOME], seam="module")


def test_inspect_names_what_it_found() -> None:
    text = inspect(built("flux"))
    assert "transformer: FluxTransformer2DModel" in text
    assert "transformer_blocks: 2 x FluxTransformerBlock, streams hidden_states, encoder" in text
    assert "single_transformer_blocks: 2 x FluxSingleTransformerBlock" in text
    assert "signals: modulated_input, timestep_embedding" in text
    assert "seams: latent, trunk" in text
    assert "no trunk: UNet2DConditionModel" in inspect(built("sdxl"))
    assert "signals: none" in inspect(SimpleNamespace(transformer=Toy(), components={}))
