"""A reused output that overflows is said, or computed instead where a policy reads values back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import erta_framework as erta
from erta_framework import Call, Decision, Needs, Policy, Reuse, Traits, hookimpl
from erta_framework.errors import NonFiniteError
from erta_integrations.diffusers import attach
from tiny_pipelines import FAMILIES

FLUX = FAMILIES["flux"]
STEPS = 8


class Swings:
    """Finite outputs whose residuals are far apart, so that a line through two overflows."""

    def __init__(self, value: float) -> None:
        self.value, self.calls = value, 0

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
        self.calls += 1
        return torch.full_like(output, self.value if self.calls % 2 else -self.value)


def build(dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    pipe = FLUX.build().to(dtype)
    value = 3e4 if dtype is torch.float16 else torch.finfo(dtype).max / 2
    pipe.transformer.proj_out.register_forward_hook(Swings(value))
    return pipe, {key: one.to(dtype) for key, one in FLUX.inputs(1).items()}


def run(pipe: Any, inputs: dict[str, Any], **changes: Any) -> Tensor:
    sample: Tensor = FLUX.run(pipe, steps=STEPS, **inputs, **changes)
    return sample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_overflow_of_a_static_schedule_is_an_error_at_the_end(dtype: torch.dtype) -> None:
    pipe, inputs = build(dtype)
    with attach(pipe, "taylorseer") as attached:
        with pytest.raises(NonFiniteError, match="branch 'cond' at step 3 is not finite"):
            run(pipe, inputs)
        (trace,) = attached.traces
        assert len(trace.steps) == STEPS
        assert trace.reused_calls > 0
        said = "reused outputs that are not finite: step 3 (cond)"
        assert said in attached.summary()
        assert said in trace.summary()
        with pytest.raises(NonFiniteError):  # the next request is judged as well
            run(pipe, inputs)
        assert len(attached.traces) == 2


def test_an_overflow_of_an_interrupted_request_is_said_as_well() -> None:
    pipe, inputs = build(torch.float16)

    def interrupt(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        pipe._interrupt = step == 4
        return {}

    with attach(pipe, "taylorseer") as attached:
        with pytest.raises(NonFiniteError, match="at step 3"):
            run(pipe, inputs, callback_on_step_end=interrupt)
        assert "stopped after 5 steps of 8" in attached.summary()
    assert "forward" not in vars(pipe.transformer)


class Guards(Policy):
    """Forecasts infinity, and is no static policy, so that its outputs are looked at."""

    traits = Traits(memory=Needs(evaluations=1))

    @hookimpl
    def decide(self) -> Decision:
        return Reuse("tries")

    @hookimpl
    def forward(self, call: Call) -> Tensor:
        if isinstance(call.decision, Reuse):
            return torch.full_like(call.x, torch.inf)
        return call.compute()


def test_what_overflows_is_computed_where_values_are_read_back() -> None:
    pipe = FLUX.build()
    full = FLUX.run(pipe, steps=STEPS)
    with attach(pipe, [Guards()]) as attached:
        assert torch.equal(FLUX.run(pipe, steps=STEPS), full)
    assert attached.traces[0].network_calls == STEPS
    assert "reused output was not finite" in attached.summary()


def test_a_finite_request_says_nothing() -> None:
    pipe = FLUX.build()
    with erta.attach(pipe, "taylorseer") as attached:
        FLUX.run(pipe, steps=STEPS)
    assert attached.traces[0].reused_calls > 0
    assert "finite" not in attached.summary()
