"""Checks that a request changes nothing around it: tensors, random state, the policy itself."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from erta_framework.plugins import Policy
from erta_framework.testing._compare import STATE, capture_settings, fail, find_difference
from erta_framework.testing._drivers import drive_by_hand
from erta_framework.testing._setup import choose_setup, make_engine, make_fresh_engine
from erta_framework.testing._toy import Toy


class Watch:
    """Remembers tensors as they were, to find those that were written into."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self._kept: list[tuple[str, Tensor, Tensor, int]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Remember a tensor."""
        self._kept.append((name, tensor, tensor.clone(), tensor._version))

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """The toy's prediction, watched from the moment it is made."""
        self.add("the network's input", x)
        self.add("the condition", embeds)
        output = self.toy(x, timestep, embeds)
        self.add("a raw output of the network", output)
        return output

    def written(self) -> list[str]:
        """Names of the tensors that are no longer as they were."""
        return [
            name
            for name, tensor, before, version in self._kept
            if tensor._version != version or not torch.equal(tensor, before)
        ]


def check_inputs_are_not_mutated(policy: Policy) -> None:
    """Latents, conditions, raw outputs and answers are never written into."""
    setup = choose_setup(policy)
    request, engine = setup.request(seed=27), make_engine(policy)
    watch = Watch(setup.toy())
    watch.add("the first latents", request.latents)
    for verb in drive_by_hand(setup, setup.session(engine, request), request, watch):
        for tensor in verb.tensors:
            watch.add("the latents" if verb.name == "end" else "a prediction", tensor)
    written = watch.written()
    if written:
        fail(
            policy,
            f"it wrote into {written[0]}",
            "make new tensors: no in-place operators on call.x, outputs or samples",
        )


def check_no_global_rng(policy: Policy) -> None:
    """No global random state is read or moved: torch's, NumPy's or Python's."""
    setup = choose_setup(policy)
    request = setup.request(seed=28)
    host, array = random.getstate(), np.random.get_state()
    results = []
    try:
        for seed in (20_407, 90_001):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)
                before = _read_random_states()
                results.append(setup.run(make_fresh_engine(policy), request))
                moved = [
                    name for name, state in _read_random_states().items() if state != before[name]
                ]
            if moved:
                fail(
                    policy,
                    f"it moved the global random state of {', '.join(moved)}",
                    "use a torch.Generator of your own, kept in session.state_of",
                )
    finally:
        random.setstate(host)
        np.random.set_state(array)
    problem = find_difference(*results)
    if problem is not None:
        fail(
            policy,
            f"its results depend on the global random state: {problem}",
            "use a torch.Generator of your own, kept in session.state_of",
        )


def _read_random_states() -> dict[str, object]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state(legacy=False)),
        "random": random.getstate(),
    }


def check_no_state_on_policy(policy: Policy) -> None:
    """A request changes nothing on the policy, its parts or their classes."""
    setup, engine = choose_setup(policy), make_engine(policy)
    everyone = (policy, *(part for part in engine.policies if part is not policy))
    before = capture_settings(everyone)
    setup.run(engine, setup.request(seed=29))
    after = capture_settings(everyone)
    changed = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
    if changed:
        fail(policy, f"a request changed {', '.join(changed)}", STATE)


SIDE_EFFECT_CHECKS = (
    check_inputs_are_not_mutated,
    check_no_global_rng,
    check_no_state_on_policy,
)
