"""Steps and branches stay right whatever schedule, guidance or callback a request brings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
from diffusers.guiders import SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig

from erta_integrations.diffusers import attach
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted, flow

EVERY = SkipPolicy(every=1)
SOME = SkipPolicy(steps=(0, 2, 5))
WAN = FAMILIES["wan-euler"]


# ------------------------------------------------------------------------ schedules
@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("flux", {"sigmas": [1.0, 0.9, 0.6, 0.5, 0.2]}),
        ("sd", {"timesteps": [950, 700, 640, 300, 20]}),
    ],
)
def test_a_grid_of_the_users_own(name: str, grid: dict[str, Any]) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    if name == "sd":
        from diffusers import DDPMScheduler

        pipe.scheduler = DDPMScheduler(variance_type="fixed_small", clip_sample=False)
    usual, expected = family.run(pipe), family.run(pipe, steps=5, **grid)
    with attach(pipe, [EVERY]) as run:
        assert torch.equal(family.run(pipe, steps=5, **grid), expected)
        assert torch.equal(family.run(pipe), usual)
    assert [len(trace.steps) for trace in run.traces] == [5, 6]
    told = [step.time for step in run.traces[0].steps]
    wanted = grid.get("timesteps") or [1000 * sigma for sigma in grid["sigmas"]]
    assert told == pytest.approx(wanted)
    listed = SkipPolicy(steps=(0, 2, 4))
    with attach(pipe, [listed]) as run, counted(pipe, family) as made:
        first = family.run(pipe, steps=5, **grid)
        family.run(pipe)
        assert torch.equal(family.run(pipe, steps=5, **grid), first)
    assert [trace.computed_steps for trace in run.traces] == [(0, 2, 4)] * 3
    assert len(made) == 9


# ------------------------------------------------------------------------- branches
class Three(nn.Module):
    """A network whose answer depends on its conditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls: list[int] = []

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        self.calls.append(int(text.flatten()[0]))
        return self.linear(hidden_states) * text.mean() + timestep / 1000  # type: ignore[no-any-return]


def several(count: int, present: Any) -> SimpleNamespace:
    """A pipeline of `count` guidance branches; `present(step)` lists those it calls, in order."""
    torch.manual_seed(0)
    network, scheduler = Three(), flow()
    texts = [torch.full((1, 2), float(k)) for k in range(count)]

    @torch.no_grad()
    def call() -> Tensor:
        scheduler.set_timesteps(6)
        x = torch.linspace(-1, 1, 8).reshape(1, 2, 4)
        for step, time in enumerate(scheduler.timesteps):
            found = [network(x, time, text=texts[k]) for k in present(step)]
            x = scheduler.step(sum(found) / len(found), time, x, return_dict=False)[0]
        return x

    parts = {"transformer": network, "scheduler": scheduler}
    return SimpleNamespace(**parts, components=parts, call=call, network=network)


@pytest.mark.parametrize("count", [3, 4])
def test_three_and_more_branches(count: int) -> None:
    """One that comes and goes, and another order, do not mix them up."""

    def present(step: int) -> list[int]:
        found = list(range(count))
        if step in (1, 4):
            found.remove(1)
        return found[::-1] if step == 4 else found

    pipe = several(count, present)
    expected = pipe.call()
    plain = list(pipe.network.calls)
    pipe.network.calls.clear()
    with attach(pipe, [EVERY]) as run:
        assert torch.equal(pipe.call(), expected)
    assert pipe.network.calls == plain
    pipe.network.calls.clear()
    with attach(pipe, [SOME]) as run:
        first = pipe.call()
        assert torch.equal(pipe.call(), first)
    assert pipe.network.calls == 2 * [k for step in (0, 2, 5) for k in present(step)]
    sources = {0: None, 1: 0, 2: None, 3: 2, 4: 2, 5: None}
    assert [(c.index, c.branch, c.source) for c in run.traces[0].calls()] == [
        (step, f"call{branch}", sources[step]) for step in range(6) for branch in present(step)
    ]


def test_three_branches_of_a_modular_pipeline() -> None:
    """Skip-layer guidance of a guider: a third branch for some of the steps only."""
    family = FAMILIES["wan-modular"]
    pipe = family.build()
    layers = LayerSkipConfig(indices=[1], fqn="blocks")
    pipe.update_components(
        guider=SkipLayerGuidance(
            guidance_scale=3.0,
            skip_layer_config=[layers],
            skip_layer_guidance_start=0.1,
            skip_layer_guidance_stop=0.6,
        )
    )
    with counted(pipe, family) as plain:
        expected = family.run(pipe)
    assert 12 < len(plain) < 18
    with attach(pipe, [EVERY]) as run, counted(pipe, family) as made:
        assert torch.equal(family.run(pipe), expected)
    assert len(made) == len(plain)
    assert len({call.branch for call in run.traces[0].calls()}) == 3
    with attach(pipe, [SOME]) as run, counted(pipe, family) as made:
        first = family.run(pipe)
        assert torch.equal(family.run(pipe), first)
    for trace in run.traces:
        computed: dict[str, list[int]] = {}
        for call in trace.calls():
            if call.computed:
                computed.setdefault(call.branch, []).append(call.index)
            else:
                assert call.source in computed[call.branch]
        assert trace.network_calls + trace.reused_calls == len(plain)
    assert len(made) == sum(trace.network_calls for trace in run.traces)


# -------------------------------------------------------------------- two networks
def test_nothing_is_reused_across_the_switch_of_networks() -> None:
    family = FAMILIES["wan22"]
    pipe = family.build()
    with attach(pipe, [SkipPolicy(steps=(0, 5))]) as run, counted(pipe, family) as made:
        family.run(pipe)
    calls = [(c.index, c.model, c.source) for c in run.traces[0].calls() if c.branch == "cond"]
    switch = next(index for index, model, _ in calls if model == "transformer_2")
    assert 1 < switch < 5
    assert [index for index, _, source in calls if source is None] == [0, switch, 5]
    for index, model, source in calls:
        assert (model == "transformer_2") == (index >= switch)
        if source is not None:
            assert source == (switch if index > switch else 0)
    assert made == ["transformer"] * 2 + ["transformer_2"] * 4


# ------------------------------------------------------------------------ callbacks
def test_callbacks_see_and_change_every_step() -> None:
    pipe, seen = WAN.build(), list[tuple[int, int, Tensor]]()

    def change(_: Any, step: int, time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, int(time), tensors["latents"].clone()))
        return {"latents": tensors["latents"] * 0.9} if step == 2 else {}

    expected = WAN.run(pipe, callback_on_step_end=change)
    plain = list(seen)
    seen.clear()
    with attach(pipe, [EVERY]):
        assert torch.equal(WAN.run(pipe, callback_on_step_end=change), expected)
    assert [row[:2] for row in seen] == [row[:2] for row in plain]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(seen, plain, strict=True))
    seen.clear()
    with attach(pipe, [SOME]) as run:
        WAN.run(pipe, callback_on_step_end=change)
    assert [row[:2] for row in seen] == [row[:2] for row in plain]
    assert run.traces[0].computed_steps == (0, 2, 5)
    assert torch.equal(seen[0][2], plain[0][2])
    assert not torch.equal(seen[1][2], plain[1][2])


# ------------------------------------------------------------------------- attaching
def test_a_configuration_file_is_attached(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("policies:\n  - skip_policy: {steps: [0, 2, 5]}\n")
    pipe = WAN.build()
    with attach(pipe, [SOME]):
        expected = WAN.run(pipe)
    for given in (path, str(path)):
        with attach(pipe, given):
            assert torch.equal(WAN.run(pipe), expected)


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_what_ends_the_with_block_leaves_the_very_same_attributes(
    error: type[BaseException], seam: str
) -> None:
    pipe = WAN.build()
    sample = WAN.run(pipe)
    parts = [pipe.scheduler, *pipe.transformer.modules()]
    before = [dict(vars(part)) for part in parts]

    def interrupt(*_: Any) -> dict[str, Any]:
        raise error

    run = attach(pipe, [SOME], seam=seam)
    with pytest.raises(error), run:
        WAN.run(pipe, callback_on_step_end=interrupt)
    for part, earlier in zip(parts, before, strict=True):
        now = {k: v for k, v in vars(part).items() if k not in CHANGED_BY_SAMPLING}
        assert now.keys() | CHANGED_BY_SAMPLING >= earlier.keys()
        assert all(value is earlier[key] for key, value in now.items())
    assert len(run.traces) == 1
    assert torch.equal(WAN.run(pipe), sample)


CHANGED_BY_SAMPLING = {"sigmas", "timesteps", "_step_index", "_begin_index", "num_inference_steps"}


@pytest.mark.parametrize("seam", ["latent", "trunk"])
def test_the_seconds_of_every_computed_call_hold_the_network(seam):
    import time

    family = FAMILIES["wan-euler"]
    pipe = family.build()
    pipe.transformer.blocks[0].attn1.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    with attach(pipe, [SkipPolicy(every=2)], seam=seam) as run:
        family.run(pipe, 4)
    calls = list(run.traces[0].calls())
    assert {call.computed for call in calls} == {True, False}
    for call in calls:
        if call.computed:
            assert call.seconds >= 0.02
