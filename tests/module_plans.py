"""Policies that assign what a function says, and runs of them on a toy with blocks."""

from __future__ import annotations

import torch

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    Policy,
    Request,
    SamplingLoop,
    Seam,
    Traits,
    hookimpl,
)
from erta_framework.modules import KEEP, ReuseKept, Select
from erta_framework.testing import BlockFlow

STEPS = 6


class Plan(Policy):
    """Assigns what a function says."""

    selected: tuple = (Select(kind=("attention", "mlp")),)
    make: object = None
    depth: int = 1  # outputs kept
    traits = Traits(seams=frozenset({Seam.MODULE}))

    @property
    def selects(self):
        return self.selected

    def keeps(self):
        return self.depth

    @hookimpl
    def assign(self, step, call):
        return self.make(step, call)


def plan(make, *kinds, keeps=1, **select):
    return Plan(make=make, depth=keeps, selected=(Select(kind=kinds, **select),))


def every(n, keep=KEEP, reuse=None):
    """Keeps at ages n and above, reuses below."""

    def make(step, call):
        reuse_it = ReuseKept(of=keep.of) if reuse is None else reuse
        ages = {place: call.age(place) for place in call.sites}
        return {p: keep if a is None or a >= n else reuse_it for p, a in ages.items()}

    return make


def request(batch=2, steps=STEPS):
    draw = torch.Generator().manual_seed(3)
    return Request(
        latents=torch.randn(batch, 3, 2, 4, 4, generator=draw),
        cond=torch.rand(batch, 3, generator=draw),
        uncond=torch.zeros(batch, 3),
        schedule=FlowEuler().schedule(steps),
    )


def sample(*policies, network=None, given=None, guidance=None, batch=2):
    network = BlockFlow() if network is None else network
    loop = SamplingLoop(Engine(policies), FlowEuler(), guidance or CFG(scale=2.0))
    return loop.run(network, request(batch) if given is None else given)


def visits(network, *paths):
    """How often each module really runs, counted inside of it."""
    counts = dict.fromkeys(paths, 0)

    def count(path):
        def hook(*_):
            counts[path] += 1

        return hook

    for path in paths:
        network.get_submodule(path).register_forward_pre_hook(count(path))
    return counts


def gated(network):
    """Paths of the modules with something on the instance that is not their own."""
    return [
        path
        for path, module in network.named_modules()
        if {"forward", "_erta_gate", "_compiled_call_impl"} & set(vars(module))
    ]
