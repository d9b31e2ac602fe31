"""A masked loop on a small network, and what each rule runs on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from erta_framework import Engine, Policy, hookimpl
from erta_framework.masked import Decoder, MaskedLoop, MaskedRequest, MaskedSchedule
from erta_integrations.words import Permutations, Size, WordsModel, WordsNetwork
from erta_policies.dkvcache import DKVCacheDecode


class Watch(Policy):
    """Notes the tokens of every call, and which positions ran."""

    traits = DKVCacheDecode().traits
    calls: list[tuple[Tensor, Tensor]]

    @hookimpl(wrapper=True)
    def forward(self, call):
        output = yield
        self.calls.append((call.x, call.feature("age") == 0))
        return output


@pytest.fixture
def watch() -> Callable[..., list[tuple[Tensor, Tensor]]]:
    """Runs a rule; the tokens and the positions that ran, for every call."""

    def run(policy, order="random", length=12, start=1, block=None, batch=2, seed=0, **more):
        torch.manual_seed(0)
        task = Permutations(count=length - 1)
        network = WordsNetwork(Size(symbols=task.mask_id + 1, width=16, heads=2, layers=2))
        model = WordsModel(network.eval().requires_grad_(False), task)
        ids = model.make_ids(batch)
        ids[:, :start] = torch.arange(start)
        calls: list[tuple[Tensor, Tensor]] = []
        decoder = Decoder(order=order, temperature=1.0, **more)
        loop = MaskedLoop(
            Engine([Watch(calls=calls), policy]), MaskedSchedule(block=block), decoder
        )
        seeds = tuple(range(seed, seed + batch))
        loop.run(model, MaskedRequest(ids=ids, start=start, seeds=seeds))
        return calls

    return run
