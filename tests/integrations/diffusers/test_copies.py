"""What is copied, pickled or saved of a pipeline while it is attached is as if it were not."""

from __future__ import annotations

import copy
import io
import pickle  # noqa: TID251 - users pickle their pipelines, and this is about that
from collections.abc import Callable
from typing import Any

import pytest
import torch

from erta_integrations.diffusers import attach
from erta_integrations.diffusers.network import is_patched
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted

SOME = SkipPolicy(every=3)
SEAMS = [("wan-euler", "latent"), ("flux", "trunk"), ("sdxl", "latent")]


def save(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),  # noqa: S301 - made here
    "deepcopy": copy.deepcopy,
    "torch.save": save,
}


def network_of(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or pipe.unet


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "seam"), SEAMS)
def test_a_copied_pipeline_is_its_own(name: str, seam: str, way: str) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    full = family.run(pipe)
    with attach(pipe, [SOME], seam=seam) as run:
        reused = family.run(pipe)
        twin = WAYS[way](pipe)
        assert not is_patched(network_of(twin), "forward")
        # a deep copy of the scheduler is followed only where it steps the attached network
        assert is_patched(twin.scheduler, "step") is (way == "deepcopy")
        with counted(twin, family) as made:
            assert torch.equal(family.run(twin), full)
        assert len(made) == 6 * family.calls
        assert len(run.traces) == 1
        assert torch.equal(family.run(pipe), reused)
    assert not is_patched(twin.scheduler, "step")
    with attach(twin, [SOME], seam=seam):
        assert torch.equal(family.run(twin), reused)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", ["network", "scheduler"])
def test_a_copied_part_serves_another_pipeline(part: str, way: str) -> None:
    family = FAMILIES["wan-euler"]
    pipe, other = family.build(), family.build()
    full = family.run(other)
    with attach(pipe, [SOME]) as run:
        family.run(pipe)
        if part == "network":
            other.transformer = WAYS[way](pipe.transformer)
        else:
            other.scheduler = WAYS[way](pipe.scheduler)
        assert torch.equal(family.run(other), full)
        assert len(run.traces) == 1


def test_a_file_that_was_saved_while_attached_needs_nothing_of_this_project() -> None:
    pipe = FAMILIES["flux"].build()
    with attach(pipe, [SOME], seam="trunk"):
        written = pickle.dumps(pipe.transformer)
    assert b"erta" not in written


def relay(*args: Any, **kwargs: Any) -> Any:
    """A `forward` that somebody else put on an instance, and that can be pickled."""
    raise AssertionError("it is only copied")


def test_a_forward_that_somebody_else_put_there_goes_with_the_copy() -> None:
    pipe = FAMILIES["wan-euler"].build()
    vars(pipe.transformer)["forward"] = relay
    with attach(pipe, [SOME]):
        twin = WAYS["pickle"](pipe.transformer)
    assert vars(twin)["forward"] is relay
