"""What becomes of an error of a pipeline that is called for a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from erta_framework.errors import CapabilityError, InputError
from erta_integrations.diffusers._requests import RequestCaller


def make_caller(error: Exception) -> RequestCaller:
    class Pipe:
        def __call__(self, prompt: str, height: int = 8, **others: Any) -> None:
            raise error

    return RequestCaller.read(Pipe(), {"height": 16, "width": None})


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_a_value_that_the_pipeline_refuses_is_an_error_of_the_input(
    kind: Callable[[str], Exception],
) -> None:
    with pytest.raises(InputError, match=r"Pipe refuses this request \(height=16\): .*no good"):
        make_caller(kind("no good")).call("a prompt", 0, "pt")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape [2] is invalid"), MemoryError("of that size"), KeyError("size")],
)
def test_what_fails_inside_stays_what_it_is_whatever_it_says(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        make_caller(error).call("a prompt", 0, "pt")
    assert caught.value is error
    assert error.__notes__ == ["in a request of Pipe (height=16)"]


def test_an_error_of_ours_says_enough() -> None:
    error = CapabilityError("not here")
    with pytest.raises(CapabilityError) as caught:
        make_caller(error).call("a prompt", 0, "pt")
    assert caught.value is error
    assert not hasattr(error, "__notes__")
