"""Places in compiled networks: two graphs for a plan that runs and reuses, and no graph break."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import Policy, Trace
from erta_framework.errors import CapabilityError
from erta_framework.modules import Ask, Keep
from erta_integrations.diffusers import attach
from module_plans import plan
from tiny_pipelines import FAMILIES

STEPS = 6
PARTS = ["attention", "cross", "mlp"]
LINE = {"forecaster": {"basis": "taylor", "order": 1, "over": "index"}}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def at(sites: Mapping[str, Any], interval: int = 2, **options: Any) -> list[Any]:
    when = {"refresh_interval": {"interval": interval, "first": 1}}
    return [{"at": {"sites": sites, "when": when, **options}}]


def find_network(pipe: Any) -> tuple[str, Any]:
    name = "transformer" if hasattr(pipe, "transformer") else "unet"
    return name, getattr(pipe, name)


def compiled(name: str, whole: bool) -> tuple[Any, Any]:
    """A pipeline whose network counts its graphs, and stops at a graph break."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    pipe = FAMILIES[name].build()
    component, network = find_network(pipe)
    if whole:
        made = torch.compile(network, backend=counter, fullgraph=True)
        setattr(pipe, component, made)
    else:
        network.compile_repeated_blocks(backend=counter, fullgraph=True)
    return pipe, counter


def run(name: str, pipe: Any, policies: list[Any]) -> tuple[Tensor, Trace]:
    with attach(pipe, policies) as attached:
        latents = FAMILIES[name].run(pipe, STEPS)
    return latents, attached.traces[0]


def count_plain_graphs(name: str, whole: bool) -> int:
    pipe, counter = compiled(name, whole)
    FAMILIES[name].run(pipe, STEPS)
    return int(counter.frame_count)


CASES = [
    ("wan-euler", False, {"kind": PARTS}),
    ("wan-euler", True, {"kind": ["attention"]}),
    pytest.param("wan-euler", True, {"kind": ["block"]}, marks=pytest.mark.slow),
    pytest.param("sd3", True, {"kind": ["attention", "mlp"]}, marks=pytest.mark.slow),
    pytest.param("flux", False, {"kind": ["attention", "mlp"]}, marks=pytest.mark.slow),
    pytest.param("pixart-sigma", True, {"kind": PARTS}, marks=pytest.mark.slow),
    pytest.param("sd", True, {"kind": PARTS}, marks=pytest.mark.slow),
    pytest.param("sd", True, {"branch": 1}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "whole", "sites"), CASES)
def test_inside_a_graph_a_plan_is_what_it_is_without(
    name: str, whole: bool, sites: Mapping[str, Any]
) -> None:
    expected, eager = run(name, FAMILIES[name].build(), at(sites))
    plain = count_plain_graphs(name, whole)
    pipe, counter = compiled(name, whole)
    latents, trace = run(name, pipe, at(sites))
    assert torch.equal(latents, expected)
    assert counter.frame_count <= 2 * plain
    graphs = counter.frame_count
    again, _ = run(name, pipe, at(sites))
    assert torch.equal(again, expected)
    assert counter.frame_count == graphs
    assert trace.work == eager.work < trace.network_samples
    assert trace.module_bytes == eager.module_bytes <= trace.state_bytes
    assert [call.sites for call in trace.calls()] == [call.sites for call in eager.calls()]
    _, network = find_network(pipe)
    assert not any("_erta_gate" in vars(module) for module in network.modules())


def test_the_ops_of_reused_modules_are_in_no_graph() -> None:
    pipe, counter = compiled("wan-euler", whole=False)
    run("wan-euler", pipe, at({"kind": PARTS}, interval=1))
    computing = counter.op_count
    run("wan-euler", pipe, at({"kind": PARTS}, interval=2))
    assert 0 < counter.op_count - computing < computing


def test_a_forecast_needs_no_graph_of_its_own() -> None:
    policies = at({"kind": PARTS}, interval=3, what=LINE)
    expected, _ = run("wan-euler", FAMILIES["wan-euler"].build(), policies)
    pipe, counter = compiled("wan-euler", whole=False)
    latents, _ = run("wan-euler", pipe, policies)
    assert torch.equal(latents, expected)
    assert counter.frame_count == 2


@pytest.mark.parametrize("of", ["output", "residual"])
def test_blocks_that_are_compiled_themselves_need_no_further_graph(of: str) -> None:
    plain = count_plain_graphs("wan-euler", whole=False)
    policies = at({"kind": ["block"]}, of=of)
    expected, eager = run("wan-euler", FAMILIES["wan-euler"].build(), policies)
    pipe, counter = compiled("wan-euler", whole=False)
    latents, trace = run("wan-euler", pipe, policies)
    assert torch.equal(latents, expected)
    assert counter.frame_count == plain
    assert trace.work == eager.work


def answer(visit: Any) -> Any:
    return visit.run()


@pytest.mark.parametrize(
    "policy",
    [
        plan(lambda _, c: dict.fromkeys(c.sites, Ask(answer)), "attention"),
        plan(lambda _, c: dict.fromkeys(c.sites, Keep("residual")), "attention"),
    ],
    ids=["ask", "residual"],
)
def test_what_reads_inputs_is_refused_inside_a_graph(policy: Policy) -> None:
    pipe, _ = compiled("wan-euler", whole=False)
    with pytest.raises(CapabilityError, match=r"blocks\.0\.attn1 lies inside a compiled module"):
        run("wan-euler", pipe, [policy])
    assert not any("_erta_gate" in vars(module) for module in pipe.transformer.modules())


def test_a_module_that_runs_twice_is_refused_inside_a_graph() -> None:
    pipe = FAMILIES["cogview4"].build()
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")
    with pytest.raises(CapabilityError, match=r"\.ff .* runs 2 times in a network call"):
        run("cogview4", pipe, at({"kind": ["mlp"]}))


def test_a_module_inside_a_graph_with_hooks_of_others_is_refused() -> None:
    pipe, _ = compiled("wan-euler", whole=False)
    module = pipe.transformer.blocks[1].attn1
    module.forward = module.forward
    with pytest.raises(CapabilityError, match=r"blocks\.1\.attn1 .* has a forward of its own"):
        run("wan-euler", pipe, at({"kind": ["attention"]}))
    assert not any("_erta_gate" in vars(each) for each in pipe.transformer.modules())


@pytest.mark.parametrize("kind", ["attention", "block"])
def test_compiling_while_attached_is_refused_at_the_next_call(kind: str) -> None:
    family = FAMILIES["wan-euler"]
    pipe = family.build()
    with attach(pipe, at({"kind": [kind]})):
        family.run(pipe, 2)
        for block in pipe.transformer.blocks:
            block.compile(backend="eager")
        with pytest.raises(CapabilityError, match=r"blocks\.0 .* was compiled after the gates"):
            family.run(pipe, 2)
