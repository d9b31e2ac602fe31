"""Scenarios with real networks whose weights, tokens or channels are divided between two ranks."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from processes import RANK, main
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from erta_framework import (
    Compute,
    Engine,
    FlowEuler,
    Needs,
    Policy,
    Request,
    Reuse,
    SamplingLoop,
    Traits,
    hookimpl,
)
from erta_integrations.fabric.agreement import Agreement, add_agreement, find_group


class Shard(Policy):
    """Reuses while this rank's part of the latents has changed little, as caches on shards do.

    The change is that since the last computed step.
    """

    threshold: float
    dim: int
    own: int
    wanted: list[bool]

    traits = Traits(memory=Needs(evaluations=1))

    @hookimpl
    def pre_step(self, step):
        self.wanted.append(True)

    @hookimpl
    def decide(self, step, call):
        last = call.state_of(self, dict[str, Tensor])["last"]
        change = float((self._part(call) - last).abs().mean() / last.abs().mean())
        self.wanted[-1] = change >= self.threshold
        return Compute("changed") if self.wanted[-1] else Reuse("little change")

    @hookimpl
    def forward(self, call):
        if not call.reused:
            call.state_of(self, dict[str, Tensor])["last"] = self._part(call).clone()
        return None

    def _part(self, call: Any) -> Tensor:
        return call.x.chunk(2, dim=self.dim)[self.own] if self.dim else call.x


class Listed(Policy):
    """Computes the listed steps."""

    traits = Traits(static=True)

    steps: tuple[int, ...]

    @hookimpl
    def decide(self, step):
        return None if step.index in self.steps else Reuse("listed")


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        # the number of local heads, which tensor parallelism divides
        q, k, v = (
            layer(x).unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(x)))


class Transformer(nn.Module):
    """A tiny transformer over latents `[B, C, L]`; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(4, 16), nn.Linear(16, 4)
        self.time = nn.Linear(1, 16)
        self.blocks = nn.ModuleList(Block(16, 4) for _ in range(2))
        self.calls = 0

    def forward(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        self.calls += 1
        told = self.time(timestep[:, None] / 1000.0 + embeds)
        tokens = self.inside(x.transpose(1, 2)) + told[:, None]
        for block in self.blocks:
            tokens = block(tokens)
        return self.outside(tokens).transpose(1, 2)


def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer()


def sampled(network: Any, policies: list[Policy], latents: Tensor, steps: int = 10) -> Any:
    solver = FlowEuler()
    request = Request(
        latents=latents,
        cond=torch.full((latents.shape[0], 1), 0.3),
        schedule=solver.schedule(steps),
        request_id="strategy",
    )
    return SamplingLoop(Engine(policies), solver).run(network, request)


def compared(
    network: Any, latents: Tensor, group: Any, shard: Shard, plain: Any | None = None
) -> dict[str, Any]:
    """One sample of ranks that disagree, against the same schedule on one rank alone."""
    policies = add_agreement([shard], group, timeout=15)
    agreement = policies[0]
    assert isinstance(agreement, Agreement)
    result = sampled(network, policies, latents)
    kept = Listed(steps=result.trace.computed_steps)
    alone = sampled(plain or transformer(), [kept], latents)
    return {
        "wanted": shard.wanted,
        "computed": result.trace.computed_steps,
        "votes": agreement.ledger.votes,
        "sample": result.sample,
        "alone": alone.sample,
    }


def noise(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fsdp2() -> dict[str, Any]:
    """Weights divided by `fully_shard`; each rank has a sample of its own."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    network = transformer()
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    # rank 0's sample is far from zero, so that it changes little by comparison
    latents = noise(1, 4, 6, seed=RANK) * (4.0 if RANK == 0 else 1.0)
    shard = Shard(threshold=0.12, dim=0, own=0, wanted=[])
    return compared(network, latents, find_group(mesh), shard)


def tensor_parallel() -> dict[str, Any]:
    """Heads and hidden channels divided by `parallelize_module`."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tensor",))
    network = transformer()
    for block in network.blocks:
        plan = {name: ColwiseParallel() for name in ("q", "k", "v", "up")}
        parallelize_module(block, mesh, {**plan, "o": RowwiseParallel(), "down": RowwiseParallel()})
    latents = noise(1, 4, 6)
    latents[:, :2] *= 4.0
    shard = Shard(threshold=0.12, dim=1, own=RANK, wanted=[])
    return compared(network, latents, find_group(mesh), shard)


def context_parallel() -> dict[str, Any]:
    """diffusers' Ulysses attention: the tokens of one video are divided."""
    import diffusers
    from diffusers import ContextParallelConfig

    from erta_integrations.diffusers import attach
    from tiny_pipelines import FAMILIES

    diffusers.logging.set_verbosity_error()
    # diffusers calls collectives that torch renames
    warnings.filterwarnings("ignore", "`torch.distributed._functional_collectives", FutureWarning)
    # diffusers asks for the number of accelerators, of which a CPU has none
    torch.accelerator.device_count = lambda: 1
    found: dict[str, Any] = {}
    for name, (dim, size) in {
        "wan-euler": (-2, {"height": 32, "width": 16}),
        "flux": (1, {"height": 16, "width": 16}),
    }.items():
        family = FAMILIES[name]
        pipe, plain = family.build(), family.build()
        latents = noise(*family.run(plain, steps=1, **size).shape)
        latents.chunk(2, dim=dim)[0].mul_(8.0)  # changes little by comparison
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
        pipe.transformer.enable_parallelism(
            config=ContextParallelConfig(ulysses_degree=2, mesh=mesh)
        )
        shard = Shard(threshold=0.2, dim=dim, own=RANK, wanted=[])
        policies = add_agreement([shard], find_group(mesh, "ulysses"), timeout=15)
        with attach(pipe, policies) as run:
            sample = family.run(pipe, steps=8, latents=latents, **size)
        with attach(plain, [Listed(steps=run.traces[0].computed_steps)]):
            alone = family.run(plain, steps=8, latents=latents, **size)
        agreement = policies[0]
        assert isinstance(agreement, Agreement)
        found |= {
            f"{name}_wanted": shard.wanted,
            f"{name}_computed": run.traces[0].computed_steps,
            f"{name}_votes": agreement.ledger.votes,
            f"{name}_calls": run.traces[0].network_calls,
            f"{name}": sample,
            f"{name}_alone": alone,
        }
    return found


if __name__ == "__main__":
    main({scenario.__name__: scenario for scenario in (fsdp2, tensor_parallel, context_parallel)})
