"""Whether the places that are found in a family's networks are what runs in a call of them."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from typing import Any

from torch import nn

from erta_bench.families._cell import find_networks
from erta_framework.errors import CapabilityError
from erta_framework.modules import find_places
from tiny_pipelines import FAMILIES

EXACT = "exact"
PARTS = ("attention", "cross", "mlp")
TWICE = "transformer_blocks.*.ff runs 2 times a call"
INEXACT: dict[str, str] = {
    "cogview4": TWICE,
    "glm-image": TWICE,
    "ltx2-three-branches": "transformer_blocks.*.audio_to_video_attn runs 0.67 times a call, "
    "transformer_blocks.*.video_to_audio_attn runs 0.67 times a call",
    "stable-cascade-decoder": "up_blocks.*.*.attention runs 2 times a call",
}
"""What `judge_places` says of families that are not exact.

The MLPs of CogView4 and GLM-Image run on image and on text. LTX-2 has a branch without attention
between picture and sound. Stable Cascade repeats a stage."""


def judge_places(name: str, steps: int = 2) -> str:
    """Say whether every attention and every MLP that is found runs once a network call.

    Args:
        name: Name of a family.
        steps: Steps of the request that is counted.

    Returns:
        `exact`, or the reason why it is not: places that do not run once a call, or why there are
        none.

    Example:
        >>> judge_places("wan-euler")
        'exact'
    """
    family = FAMILIES[name]
    pipe = family.build()
    try:
        counts = {network: count_runs(network) for network in find_networks(pipe, family)}
    except CapabilityError as error:
        return str(error)
    with ExitStack() as stack:
        for network, runs in counts.items():
            for path in ("", *runs.expected):
                module = network.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(runs.make_hook(path)).remove)
        family.run(pipe, steps)
    return "; ".join(dict.fromkeys(filter(None, map(RunCount.explain, counts.values())))) or EXACT


class RunCount:
    """How often places ran in the calls of one network.

    Attributes:
        expected: Paths of the modules that should run once a call.
    """

    def __init__(self, expected: tuple[str, ...]) -> None:
        self.expected = expected
        self.runs: Counter[str] = Counter()

    def make_hook(self, path: str) -> Any:
        """A hook that counts a run of a module."""

        def count(*_: Any) -> None:
            self.runs[path] += 1

        return count

    def explain(self) -> str:
        """What did not run once a call, each pattern once; empty where all did."""
        calls = self.runs[""]
        wrong = {
            re.sub(r"\b\d+\b", "*", path): self.runs[path] / calls
            for path in self.expected
            if self.runs[path] != calls
        }
        return ", ".join(f"{path} runs {runs:.2g} times a call" for path, runs in wrong.items())


def count_runs(network: nn.Module) -> RunCount:
    """A count of the attention and MLPs of a network.

    Raises:
        CapabilityError: It has no places.
    """
    return RunCount(tuple(p.modules[-1] for p in find_places(network) if p.kind in PARTS))
