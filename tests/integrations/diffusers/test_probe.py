"""Probes: the hidden states after the first blocks, each of which runs once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from erta_framework import Call, Compute, Decision, Needs, Policy, Reuse, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach, inspect
from erta_integrations.diffusers.trunk import discover
from erta_integrations.diffusers.trunk._signals import find_attention
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, fill_zeros, flow

STEPS = 6
PROBED = ("wan-euler", "wan22", "wan-i2v", "flux-true-cfg", "qwen-image", "sd3", "cogvideox",
          "hunyuan-video", "ltx", "pixart-sigma", "sana", "lumina2", "aura-flow", "chroma",
          "mochi", "cogview4", "dit", "allegro", "z-image")  # fmt: skip

Seen = list[tuple[int, str, Tensor, Tensor]]


class Probing(Policy):
    """Looks at its probes before it decides, or after, and reuses every `period`-th step."""

    depths: tuple[int, ...] = (1,)
    period: int = 2
    early: bool = True
    late: bool = False
    seen: Any = None

    @property
    def traits(self) -> Traits:
        return Traits(
            requires=frozenset(f"signal:probe:{depth}" for depth in self.depths),
            decides="branch",
            memory=Needs(evaluations=1),
        )

    def look(self, step: Step, call: Call) -> None:
        for depth in self.depths:
            probe = call.feature(f"probe:{depth}")
            assert torch.equal(call.feature(f"probe:{depth}"), probe)
            if self.seen is not None:
                self.seen.append((step.index, call.branch, depth, probe.clone()))

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        if self.early:
            self.look(step, call)
        reuse = self.period and step.index % self.period
        if reuse:
            return Reuse("probe", scope="branch")
        return Compute("probe", scope="branch")

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Any:
        output = yield
        if self.late:
            self.look(step, call)
        return output


@functools.cache
def built(name: str) -> Any:
    return FAMILIES[name].build()


def deeper(name: str, **layers: int) -> Any:
    """The family's pipeline with another number of blocks."""
    pipe = FAMILIES[name].build()
    config = {k: v for k, v in pipe.transformer.config.items() if not k.startswith("_")}
    torch.manual_seed(3)
    pipe.transformer = fill_zeros(type(pipe.transformer).from_config({**config, **layers}))
    return pipe


def stacks(pipe: Any) -> list[list[nn.Module]]:
    """The blocks of each network of a pipeline; refiners that run before them are left out."""
    networks = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    return [
        [
            block.module
            for stack, found in discover(network).items()
            for block in found
            if "refiner" not in stack
        ]
        for network in networks
        if network is not None
    ]


@contextmanager
def blocks_run(pipe: Any) -> Iterator[list[int]]:
    """Collects the place of every block that really runs, seen from inside the block."""
    places: list[int] = []
    handles = []
    for blocks in stacks(pipe):
        for place, block in enumerate(blocks):
            inner = find_attention(block)
            assert inner is not None
            handles.append(
                inner.register_forward_pre_hook(lambda *_, place=place: places.append(place))
            )
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


def calls_of(places: list[int]) -> list[list[int]]:
    """The places, split where the first block runs again."""
    found: list[list[int]] = []
    for place in places:
        if place == 0:
            found.append([])
        found[-1].append(place)
    return found


# --------------------------------------------------------------------- every family
@pytest.mark.parametrize("name", PROBED)
def test_a_policy_that_always_computes_changes_nothing(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    with blocks_run(pipe) as plain:
        sample = family.run(pipe)
    policy = Probing(period=0, late=True)
    with attach(pipe, [policy], seam="trunk") as run, blocks_run(pipe) as places:
        assert torch.equal(family.run(pipe), sample)
    assert places == plain
    assert run.traces[0].reused_calls == 0


@pytest.mark.parametrize("name", PROBED)
def test_a_reused_call_runs_the_probed_block_and_no_other(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)
    with attach(pipe, [Probing()], seam="trunk") as run, blocks_run(pipe) as places:
        first = family.run(pipe)
    made = calls_of(places)
    computed = [call.computed for call in run.traces[0].calls()]
    assert len(made) == len(computed)
    full = list(range(len(stacks(pipe)[0])))
    assert made == [full if c else [0] for c in computed]
    reused = [call for call in run.traces[0].calls() if not call.computed]
    assert {call.signals for call in reused} == {("probe:1",)}
    assert not all(computed)
    # the probe is no part of the answer: without it the same samples come out
    with attach(pipe, [SkipEvery()], seam="trunk"):
        assert torch.equal(family.run(pipe), first)


class SkipEvery(Policy):
    """Reuses every second step without a probe."""

    traits = Traits(memory=Needs(evaluations=1))

    @hookimpl
    def decide(self, step: Step) -> Decision:
        return Reuse("odd") if step.index % 2 else Compute("even")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - set(PROBED)))
def test_every_other_family_is_probed_or_refused_with_what_works(name: str) -> None:
    family, pipe = FAMILIES[name], built(name)

    def outcome() -> int | str:
        try:
            with attach(pipe, [Probing()], seam="trunk") as run:
                family.run(pipe)
        except CapabilityError as error:
            return str(error)
        return run.traces[0].reused_calls

    found = outcome()
    if isinstance(found, str):
        assert "seam='latent'" in found
        assert name not in ("wan-unipc", "flux", "flux-kontext", "cogvideox-i2v")
    else:
        assert found > 0
        assert name not in ("hidream", "latte", "sd", "sdxl", "sdxl-controlnet")


# ------------------------------------------------------------------------ the depth
DEEP: dict[str, tuple[str, dict[str, int], int]] = {
    "one-list": ("wan-euler", {"num_layers": 4}, 4),
    "two-lists": ("flux", {"num_layers": 1, "num_single_layers": 4}, 5),
    "joined-streams": ("aura-flow", {"num_mmdit_layers": 1, "num_single_dit_layers": 4}, 5),
}


@pytest.mark.parametrize("depths", [(1,), (2,), (3,), (3, 1)], ids=str)
@pytest.mark.parametrize("kind", DEEP)
def test_deeper_probes_are_what_the_blocks_return(kind: str, depths: tuple[int, ...]) -> None:
    name, layers, total = DEEP[kind]
    family, pipe = FAMILIES[name], deeper(name, **layers)
    sample, seen = family.run(pipe), list[Any]()
    alone = {
        depth: returned(pipe, lambda: family.run(pipe, steps=2, **QUIET.get(name, {})), depth)
        for depth in depths
    }
    with attach(pipe, [Probing(depths=depths, period=0, seen=seen)], seam="trunk") as run:
        assert torch.equal(family.run(pipe), sample)
        seen.clear()
        family.run(pipe, steps=2, **QUIET.get(name, {}))
    for depth in depths:
        (probe,) = [p for index, _, d, p in seen if d == depth and index == 1]
        tokens = probe.shape[1]
        assert torch.equal(probe, alone[depth][-1][:, -tokens:])
    with (
        attach(pipe, [Probing(depths=depths)], seam="trunk") as run,
        blocks_run(pipe) as places,
    ):
        family.run(pipe)
    made = calls_of(places)
    computed = [call.computed for call in run.traces[0].calls()]
    expected = [list(range(total if c else max(depths))) for c in computed]
    assert made == expected
    assert sum(computed) < len(computed)


QUIET = {"wan-euler": {"guidance_scale": 1.0}, "aura-flow": {"guidance_scale": 1.0}}


def returned(pipe: Any, run: Callable[[], Any], depth: int) -> list[Tensor]:
    """The image tokens (last along the sequence) that a block returns, call by call."""
    found: list[Tensor] = []
    block = stacks(pipe)[0][depth - 1]

    def keep(_: Any, __: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        # transformer blocks of two streams return the text first
        found.append(tensors[-1].clone())

    handle = block.register_forward_hook(keep)
    run()
    handle.remove()
    return found


def test_what_comes_before_the_last_probed_block_runs_without_being_asked() -> None:
    """The block of the probe itself runs only when it is looked at."""
    family, pipe = FAMILIES["wan-euler"], deeper("wan-euler", num_layers=4)
    for depth, ran in ((1, []), (3, [0, 1])):
        policy = Probing(depths=(depth,), early=False)
        with attach(pipe, [policy], seam="trunk") as run, blocks_run(pipe) as places:
            family.run(pipe, guidance_scale=1.0)
        reused = sum(not call.computed for call in run.traces[0].calls())
        full = (STEPS - reused) * 4
        assert reused == 3
        assert len(places) == full + reused * len(ran)


def test_a_probe_after_the_decision_costs_no_second_run() -> None:
    family, pipe = FAMILIES["flux"], deeper("flux", num_layers=1, num_single_layers=4)
    seen: list[Any] = []
    policy = Probing(depths=(1, 3), early=True, late=True, seen=seen)
    with attach(pipe, [policy], seam="trunk"), blocks_run(pipe) as places:
        family.run(pipe)
    assert len(places) == 3 * 5 + 3 * 3
    by_step: dict[tuple[int, int], list[Tensor]] = {}
    for index, _, depth, probe in seen:
        by_step.setdefault((index, depth), []).append(probe)
    assert {len(probes) for key, probes in by_step.items() if key[0]} == {2}
    for probes in by_step.values():
        assert all(torch.equal(probe, probes[0]) for probe in probes)


class RunsAfterProbing(Probing):
    """Probes, and then runs the network before it decides."""

    decision: str = "compute"

    @hookimpl
    def decide(self, step: Step, call: Call) -> Decision:
        self.look(step, call)
        call.compute()
        return Compute("ran") if self.decision == "compute" else Reuse("ran")

    @hookimpl(wrapper=True)
    def forward(self, call: Call) -> Any:
        yield
        return call.compute()


@pytest.mark.parametrize("decision", ["compute", "reuse"])
@pytest.mark.parametrize("depths", [(1,), (2,)])
def test_a_policy_that_runs_the_network_after_its_probe(
    depths: tuple[int, ...], decision: str
) -> None:
    family, pipe = FAMILIES["wan-euler"], deeper("wan-euler", num_layers=4)
    with blocks_run(pipe) as plain:
        sample = family.run(pipe)
    policy = RunsAfterProbing(depths=depths, decision=decision)
    with attach(pipe, [policy], seam="trunk") as run, blocks_run(pipe) as places:
        assert torch.equal(family.run(pipe), sample)
    assert run.traces[0].network_calls == 2 * STEPS
    assert sorted(places) == sorted(plain)


def test_every_branch_probes_its_own_input() -> None:
    family, pipe, seen = FAMILIES["wan-euler"], built("wan-euler"), list[Any]()
    with attach(pipe, [Probing(early=False, late=True, seen=seen)], seam="trunk"):
        family.run(pipe)
    probes = {(index, branch): probe for index, branch, _, probe in seen}
    assert len(probes) == len(seen) == 2 * STEPS
    for index in range(STEPS):
        assert not torch.equal(probes[index, "cond"], probes[index, "uncond"])


def test_skip_layer_guidance_has_its_own_probe() -> None:
    """Its branch leaves a block out, so that its trunk is shorter."""
    family, pipe = FAMILIES["sd3"], deeper("sd3", num_layers=3)
    changes = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.9}
    sample = family.run(pipe, **changes)
    with attach(pipe, [Probing(period=0)], seam="trunk"):
        assert torch.equal(family.run(pipe, **changes), sample)
    with attach(pipe, [Probing(depths=(2,))], seam="trunk") as run:
        family.run(pipe, **changes)
    assert {call.branch for call in run.traces[0].calls()} == {"call0", "call1"}


def test_other_sizes_and_errors_leave_nothing_of_a_probe_behind() -> None:
    family, pipe = FAMILIES["wan-euler"], built("wan-euler")
    changes: list[dict[str, Any]] = [{"batch": 2}, dict(family.other), {"steps": 8}, {}]
    fresh = []
    for change in changes:
        with attach(pipe, [Probing()], seam="trunk"):
            fresh.append(family.run(pipe, **change))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with attach(pipe, [Probing()], seam="trunk"):
        handle = pipe.transformer.blocks[0].ffn.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            family.run(pipe)
        handle.remove()
        for change, sample in zip(changes, fresh, strict=True):
            assert torch.equal(family.run(pipe, **change), sample)
    assert not any("forward" in vars(block) for block in pipe.transformer.blocks)


# ------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("depths", [(2,), (7,), (0,)], ids=str)
def test_a_depth_that_is_not_there_is_refused_at_attach(depths: tuple[int, ...]) -> None:
    with pytest.raises(
        CapabilityError,
        match=rf"signal:probe:{depths[0]}, which .*WanTransformer3DModel.*timestep.*, probe:1\)",
    ):
        attach(built("wan-euler"), [Probing(depths=depths)], seam="trunk")


def test_a_probe_needs_the_trunk_seam() -> None:
    with pytest.raises(CapabilityError, match=r"FluxTransformer2DModel.*seam='trunk'"):
        attach(built("flux"), [Probing()])


def test_a_branch_whose_trunk_is_too_short_is_refused() -> None:
    pipe = deeper("sd3", num_layers=3)
    with (
        attach(pipe, [Probing(depths=(2,))], seam="trunk"),
        pytest.raises(CapabilityError, match=r"probe:2 .*SD3Transformer2DModel ran 1 blocks"),
    ):
        FAMILIES["sd3"].run(pipe, skip_guidance_layers=[0, 2])


class ToyBlock(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.sin()


class Skipping(nn.Module):
    """A block that adds what an earlier one returned, under a name that says nothing."""

    def forward(self, hidden_states: Tensor, other: Tensor | None = None) -> Tensor:
        return hidden_states.sin() if other is None else hidden_states.sin() + other


class Ladder(nn.Module):
    """A network of five blocks that is told how to connect them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.blocks = nn.ModuleList([Skipping() for _ in range(5)])

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for place, block in enumerate(self.blocks):
            if self.kind == "u-shaped" and place > 2:
                hidden_states = block(hidden_states, outputs[4 - place])
            else:
                hidden_states = block(hidden_states)
            outputs.append(hidden_states)
            if self.kind == "in-place" and place == 1:
                hidden_states += 1.0
        return hidden_states * timestep


def ladder(kind: str) -> Any:
    network, scheduler = Ladder(kind), flow()

    def call() -> Tensor:
        scheduler.set_timesteps(4)
        x = torch.linspace(-1, 1, 6).reshape(1, 3, 2)
        for time in scheduler.timesteps:
            x = scheduler.step(network(x, time), time, x, return_dict=False)[0]
        return x

    parts = {"transformer": network, "scheduler": scheduler}
    return SimpleNamespace(**parts, components=parts, call=call)


def test_inputs_from_blocks_further_back_are_refused_at_the_first_call() -> None:
    pipe = ladder("u-shaped")
    with (
        attach(pipe, [SkipPolicy(every=2)], seam="trunk"),
        pytest.raises(
            CapabilityError,
            match=r"take the outputs of earlier blocks \(other of blocks\.3 is what blocks\.1 ret",
        ),
    ):
        pipe.call()


def test_writing_in_place_between_blocks_is_refused() -> None:
    pipe = ladder("in-place")
    with (
        attach(pipe, [SkipPolicy(every=2)], seam="trunk"),
        pytest.raises(CapabilityError, match=r"changes what passes from blocks\.1 to blocks\.2"),
    ):
        pipe.call()


class Scribbles(Probing):
    """Writes into the probe, which is the network's own tensor."""

    def look(self, step: Step, call: Call) -> None:
        call.feature("probe:1").add_(1.0)
        if self.late:
            call.feature("probe:1")


def test_a_probe_that_was_written_into_is_refused() -> None:
    pipe = ladder("plain")
    expected = pipe.call()
    with attach(pipe, [Probing(period=0, depths=(1, 3))], seam="trunk"):
        assert torch.equal(pipe.call(), expected)
    for late, error in ((False, "changes what passes from blocks.0"), (True, "probe:1 is lost")):
        scribbling = Scribbles(period=0, early=not late, late=late)
        with (
            attach(pipe, [scribbling], seam="trunk"),
            pytest.raises(CapabilityError, match=error),
        ):
            pipe.call()


def test_inspect_lists_the_probes() -> None:
    assert "  probes: probe:1\n" in inspect(built("wan-euler"))
    deep = inspect(deeper("flux", num_layers=1, num_single_layers=5))
    assert "  probes: probe:1 to probe:4\n" in deep
    assert "  probes: none\n" in inspect(built("sdxl"))
