"""The node of ComfyUI, against a stand-in with the interface that ComfyUI documents."""

from __future__ import annotations

import importlib.util
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import comfy_stand_in as comfy
from erta_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, ErtaCache, cache_model
from erta_framework import Engine
from erta_framework.errors import CapabilityError, ConflictError
from erta_policies.ertacache import SkipPolicy, TimestepAdjuster

STEPS = 8
SIGMAS = torch.cat([torch.linspace(8, 0.5, STEPS), torch.zeros(1)])
PLAN = (0, 1, 4, 6)
ROOT = Path(__file__).parents[3] / "integrations" / "comfyui"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`comfy.patcher_extension`, as the node imports it."""
    extension = types.ModuleType("comfy.patcher_extension")
    extension.WrappersMP = comfy.WrappersMP
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)


def sample(patcher: Any, function: Any = comfy.sample_euler, **settings: Any) -> Tensor:
    noise = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    return comfy.Guider(patcher, **settings).sample(noise, comfy.KSampler(function), SIGMAS)


def make() -> Any:
    return comfy.ModelPatcher(comfy.BaseModel())


@pytest.mark.parametrize("function", [comfy.sample_euler, comfy.sample_two_step])
@pytest.mark.parametrize("settings", [{}, {"split": True}, {"scale": 1}])
@pytest.mark.parametrize("policies", ["[]", f"skip_policy: {{steps: {[*range(STEPS)]}}}"])
def test_nothing_skipped_is_the_same_bit_for_bit(
    function: Any, settings: dict[str, Any], policies: str
) -> None:
    plain = make()
    expected = sample(plain, function, **settings)
    model = make()
    (cached,) = ErtaCache().apply(model, policies)
    assert torch.equal(sample(cached, function, **settings), expected)
    assert model.model.seen == plain.model.seen
    assert model.wrappers == {}, "the given model was changed"


@pytest.mark.parametrize(
    ("settings", "batches"),
    [({}, [[1, 0]]), ({"split": True}, [[1], [0]]), ({"scale": 1}, [[0]])],
)
@pytest.mark.parametrize("function", [comfy.sample_euler, comfy.sample_two_step])
def test_the_network_runs_at_the_planned_steps_alone(
    function: Any, settings: dict[str, Any], batches: list[list[int]]
) -> None:
    model = make()
    cached, cache = cache_model(model, Engine([SkipPolicy(steps=PLAN)]))
    sample(cached, function, **settings)
    assert model.model.seen == batches * len(PLAN)
    assert cache.traces[0].computed_steps == PLAN
    assert cache.traces[0].network_calls == len(PLAN)
    assert cache.traces[0].stopped == ""


def test_a_reused_step_takes_the_newest_prediction_of_each_conditioning() -> None:
    """By hand, on euler: the predictions of both are held, and guided anew."""
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)) * SIGMAS[0]
    held: Tensor | None = None
    for step, (sigma, later) in enumerate(pairwise(SIGMAS)):
        if step in PLAN:
            cond, uncond = (torch.tanh(x / (1 + sigma) + bias) for bias in (0.5, -0.3))
            held = uncond + (cond - uncond) * 3.0
        assert held is not None
        x = x + (later - sigma) * (x - held) / sigma
    cached, _ = cache_model(make(), Engine([SkipPolicy(steps=PLAN)]))
    torch.testing.assert_close(sample(cached), x)


def test_runs_share_nothing() -> None:
    cached, cache = cache_model(make(), Engine([SkipPolicy(steps=PLAN)]))
    assert torch.equal(sample(cached), sample(cached))
    assert torch.equal(sample(cached, split=True), sample(cached))
    assert [trace.computed_steps for trace in cache.traces] == [PLAN] * 4


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (comfy.sample_heun, r"heun runs the network again at step 1 .*use a sampler that runs"),
        (comfy.sample_midpoint, r"midpoint runs the network at sigma .* between the 8 steps"),
    ],
)
def test_samplers_with_several_evaluations_a_step_are_refused(function: Any, said: str) -> None:
    cached, cache = cache_model(make(), Engine([SkipPolicy(steps=PLAN)]))
    with pytest.raises(CapabilityError, match=said):
        sample(cached, function)
    assert "runs the network" in str(cache.traces[0].stopped)
    sample(cached)  # and the next run begins anew
    assert cache.traces[1].computed_steps == PLAN


def test_a_second_evaluation_by_another_node_is_refused() -> None:
    cached, _ = cache_model(make(), Engine([SkipPolicy(steps=PLAN)]))

    class Curious(comfy.Guider):
        def predict_noise(self, x: Tensor, sigma: Tensor, options: Any) -> Tensor:
            found = super().predict_noise(x, sigma, options)
            self.calc_cond_batch([[0.1]], x, sigma, options)
            return found

    with pytest.raises(CapabilityError, match="without nodes that evaluate the model themselves"):
        Curious(cached).sample(torch.ones(1, 4, 6, 6), comfy.KSampler(comfy.sample_euler), SIGMAS)


def test_a_guider_may_drop_a_conditioning_on_its_way() -> None:
    """Another set of conditionings has no history, so its first step computes."""

    class Saving(comfy.Guider):
        def predict_noise(self, x: Tensor, sigma: Tensor, options: Any) -> Tensor:
            self.scale = 3.0 if sigma[0] > SIGMAS[5] else 1
            return super().predict_noise(x, sigma, options)

    model = make()
    cached, cache = cache_model(model, Engine([SkipPolicy(steps=PLAN)]))
    Saving(cached).sample(torch.ones(1, 4, 6, 6), comfy.KSampler(comfy.sample_euler), SIGMAS)
    assert cache.traces[0].computed_steps == (0, 1, 4, 5, 6)
    assert model.model.seen == [[1, 0]] * 3 + [[0]] * 2


def test_policies_that_treat_conditionings_apart_are_refused() -> None:
    (cached,) = ErtaCache().apply(make(), "cfg_cache")
    with pytest.raises(CapabilityError, match="two_branches"):
        sample(cached)


def test_a_schedule_that_rises_is_refused() -> None:
    cached, _ = cache_model(make(), Engine([]))
    sampler = comfy.KSampler(comfy.sample_euler)
    with pytest.raises(CapabilityError, match="do not fall"):
        comfy.Guider(cached).sample(torch.ones(1, 4, 6, 6), sampler, torch.tensor([1.0, 2.0, 0.0]))


@pytest.mark.parametrize("policy", [TimestepAdjuster(phi=(0.9,) * STEPS)])
def test_policies_that_move_steps_are_refused_before_the_network_runs(policy: Any) -> None:
    model = make()
    cached, _ = cache_model(model, Engine([policy]))
    with pytest.raises(CapabilityError, match="first_order"):
        sample(cached)
    assert model.model.seen == []


def test_what_follows_may_write_into_the_predictions() -> None:
    """The stand-in guides in place, as nodes do; a reused prediction must not have seen it."""
    cached, _ = cache_model(make(), Engine([SkipPolicy(steps=(0,))]))
    first = sample(cached)
    second = sample(cached)
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_outside_of_a_sampler_the_network_runs_as_ever() -> None:
    model = make()
    cached, cache = cache_model(model, Engine([SkipPolicy(steps=PLAN)]))
    options = {"transformer_options": {}}
    comfy.Guider(cached).predict_noise(torch.ones(1, 4, 6, 6), torch.ones(1), options)
    assert model.model.seen == [[1, 0]]
    assert cache.traces == []


def test_a_second_cache_on_a_model_is_refused() -> None:
    (cached,) = ErtaCache().apply(make(), "[]")
    with pytest.raises(ConflictError, match="one node ErtaCache"):
        ErtaCache().apply(cached, "[]")


def test_an_old_comfyui_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", None)
    with pytest.raises(CapabilityError, match="update it"):
        cache_model(make(), Engine([]))


@pytest.mark.parametrize(
    "text",
    [
        "skip_policy: {evenly: 4}",
        "{skip_policy: {evenly: 4}}",
        "[skip_policy: {evenly: 4}]",
        "- skip_policy: {evenly: 4}",
    ],
)
def test_the_text_of_the_node_may_be_written_in_any_way(text: str, tmp_path: Path) -> None:
    assert ErtaCache.VALIDATE_INPUTS(text) is True
    model = make()
    (cached,) = ErtaCache().apply(model, text)
    sample(cached)
    assert len(model.model.seen) == 4
    path = tmp_path / "run.yaml"
    path.write_text("policies: [skip_policy: {evenly: 4}]", encoding="utf-8")
    assert ErtaCache.VALIDATE_INPUTS(str(path)) is True


@pytest.mark.parametrize("text", ["skip_polic", "skip_policy: {evenl: 4}", "a: [", "none.yaml"])
def test_what_is_wrong_with_the_text_is_said_before_it_runs(text: str) -> None:
    assert isinstance(ErtaCache.VALIDATE_INPUTS(text), str)


def test_the_folder_loads_as_comfyui_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, under a name of ComfyUI's, without being installed."""
    name = "custom_nodes_erta"
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS)
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS) == {"ErtaCache"}
    node = module.NODE_CLASS_MAPPINGS["ErtaCache"]
    assert list(node.INPUT_TYPES()["required"]) == ["model", "policies"]
    assert callable(getattr(node, node.FUNCTION))
    assert node.RETURN_TYPES == ("MODEL",)
