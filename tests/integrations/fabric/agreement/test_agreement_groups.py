"""Which ranks agree, as strategies say it, and where nobody has to: in one process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("lightning")

from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.deepspeed import DeepSpeedStrategy
from lightning.fabric.strategies.fsdp import FSDPStrategy
from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
from lightning.fabric.strategies.single_device import SingleDeviceStrategy
from torch.distributed.device_mesh import init_device_mesh

from erta_framework import Engine, Policy, Reuse, hookimpl
from erta_framework.errors import InputError
from erta_integrations.fabric.agreement import Agreement, SamePlan, add_agreement, find_group
from erta_integrations.fabric.agreement._collectives import choose_device
from erta_policies.ertacache import SkipPolicy


class Guess(Policy):
    """Decides while sampling."""

    @hookimpl
    def decide(self, step):
        return Reuse("guess") if step.index % 2 else None


@pytest.fixture
def world() -> Iterator[Any]:
    """A world of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


class Several:
    """Stands in for a group of three ranks where only its size is asked."""

    def size(self) -> int:
        return 3


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1, 2])
    return Several()


def test_ranks_with_models_of_their_own_never_agree() -> None:
    assert find_group(DDPStrategy()) is None
    assert find_group(SingleDeviceStrategy("cpu")) is None


def test_fully_sharded_ranks_are_the_world_or_one_part_of_the_mesh(world: Any) -> None:
    assert find_group(FSDPStrategy()) is world
    named = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replica", "shard"))
    assert find_group(FSDPStrategy(device_mesh=named)) is named.get_group("shard")
    assert find_group(FSDPStrategy(device_mesh=named), "replica") is named.get_group("replica")
    plain = init_device_mesh("cpu", (1, 1))
    assert find_group(FSDPStrategy(device_mesh=plain)) is plain.get_group(1)
    shards, replicas = dist.new_group([0]), dist.new_group([0])
    hybrid = FSDPStrategy(process_group=(shards, replicas), sharding_strategy="HYBRID_SHARD")
    assert find_group(hybrid) is shards


def parallel(mesh: Any) -> ModelParallelStrategy:
    strategy = ModelParallelStrategy(lambda module, mesh: module)
    strategy._device_mesh = mesh
    return strategy


class Grid:
    """A mesh as far as its dimensions go."""

    mesh_dim_names = ("data_parallel", "tensor_parallel")

    def __init__(self, *sizes: int) -> None:
        self.sizes = dict(zip(self.mesh_dim_names, sizes, strict=True))

    def __getitem__(self, name: str) -> Any:
        size = self.sizes[name]
        return type("Dim", (), {"size": lambda self: size})()


def test_a_model_parallel_strategy_with_a_choice_asks_for_it(world: Any) -> None:
    with pytest.raises(InputError, match=r"name .'tensor_parallel',. if each data-parallel rank"):
        find_group(parallel(Grid(2, 2)))
    assert find_group(parallel(Grid(1, 1))) is None
    names = ("data_parallel", "tensor_parallel")
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=names)
    assert find_group(parallel(mesh), "tensor_parallel") is mesh.get_group("tensor_parallel")
    both = find_group(parallel(mesh), names)
    assert both is not None
    assert dist.get_process_group_ranks(both) == [0]


def test_a_strategy_before_its_launch_or_of_another_kind_is_refused() -> None:
    for strategy in (FSDPStrategy(), ModelParallelStrategy(lambda module, mesh: module)):
        with pytest.raises(InputError, match=r"call fabric.launch\(\) before find_group"):
            find_group(strategy)
    unknown = object.__new__(DeepSpeedStrategy)
    with pytest.raises(InputError, match="DeepSpeedStrategy that compute together are not known"):
        find_group(unknown)
    with pytest.raises(InputError, match="find_group got 7; give a DeviceMesh"):
        find_group(7)


def test_an_agreement_stands_before_policies_that_decide_while_sampling(
    three: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    guess = Guess()
    first, *rest = add_agreement([guess], three, timeout=9)
    assert isinstance(first, Agreement)
    assert (first.group, first.timeout, rest) == (three, 9, [guess])
    assert "ranks 0, 1, 2 agree on each decision" in caplog.text
    engine = Engine([first, guess])
    assert engine.traits.collective
    assert not engine.traits.static
    assert "decide            [agreement] -> guess -> core" in engine.explain()
    assert "0  Agreement(group of 3 ranks, timeout=9)" in engine.explain()


def test_nothing_is_added_where_nobody_can_differ(
    world: Any, three: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    guess, static = Guess(), SkipPolicy(every=2)
    assert add_agreement([guess], None) == [guess]
    assert add_agreement([guess], world) == [guess]
    assert caplog.text.count("no other rank shares the samples") == 2
    assert len(add_agreement([static, guess], three)) == 3


def test_static_plans_are_compared_where_ranks_share_a_sample(
    three: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    static = SkipPolicy(every=2)
    first, *rest = add_agreement([static], three, timeout=9)
    assert isinstance(first, SamePlan)
    assert (first.group, first.policies, first.timeout, rest) == (three, (static,), 9, [static])
    assert "the schedule is static; ranks 0, 1, 2 compare their plans" in caplog.text
    assert repr(first) == "SamePlan(group of 3 ranks, timeout=9)"
    engine = Engine([first, static])
    assert engine.traits.static
    assert not engine.traits.collective
    for timeout in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="must be above 0 and finite"):
            SamePlan(group=three, policies=(), timeout=timeout)


def test_messages_stay_with_the_latents_unless_the_backend_is_gloo(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_device(world, cuda) == choose_device(world, cpu) == cpu
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
    assert choose_device(world, cuda) == cuda
    assert choose_device(world, cpu) == cpu


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_an_impossible_timeout_is_refused(three: Any, timeout: float) -> None:
    with pytest.raises(InputError, match="must be above 0 and finite"):
        Agreement(group=three, timeout=timeout)
