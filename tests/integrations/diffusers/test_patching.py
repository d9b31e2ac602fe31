"""Patches are undone exactly, also where an interrupt came in the middle of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest

from erta_integrations.diffusers.network import PatchSet, _patching

MOST = 200
"""More lines than undoing takes."""


class Owner:
    def forward(self) -> str:
        return "forward"

    def step(self) -> str:
        return "step"


class Hook:
    """A hook of accelerate or diffusers on top of a patch, which keeps what it wraps."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = self.original_forward = forward


@contextmanager
def interrupted_at(line: int) -> Iterator[list[int]]:
    """Raise `KeyboardInterrupt` when so many lines of the module have run; gives how many did."""
    ran = [0]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != _patching.__file__:
            return None
        if event == "line":
            ran[0] += 1
            if ran[0] == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield ran
    finally:
        sys.settrace(before)


def patched() -> tuple[list[Owner], PatchSet, dict[str, Any]]:
    """Two owners: one patched twice over an attribute of its own, one with a hook on top."""
    own, hooked = Owner(), Owner()
    held = {"forward": lambda: "own forward"}
    vars(own).update(held)
    patches = PatchSet()

    def louder(original: Callable[..., str], *_: object) -> str:
        return original().upper()

    for name in ("forward", "forward", "step"):
        patches.apply(own, name, louder)
    patch = patches.apply(hooked, "forward", louder)
    vars(hooked)["_old_forward"] = patch
    vars(hooked)["forward"] = lambda: f"hook of {vars(hooked)['_old_forward']()}"
    return [own, hooked], patches, held


def check_undone(owners: list[Owner], held: dict[str, Any]) -> None:
    own, hooked = owners
    assert vars(own) == held
    assert (own.forward(), own.step()) == ("own forward", "step")
    assert hooked.forward() == "hook of forward"
    assert vars(hooked)["_old_forward"] == Owner.forward.__get__(hooked)


def test_what_was_there_is_restored() -> None:
    owners, patches, held = patched()
    assert [owner.forward() for owner in owners] == ["OWN FORWARD", "hook of FORWARD"]
    patches.undo()
    check_undone(owners, held)
    patches.undo()
    check_undone(owners, held)


@pytest.mark.parametrize("again", [0, 3])
def test_an_interrupt_at_any_line_leaves_what_a_second_call_finishes(again: int) -> None:
    for line in range(1, MOST):
        owners, patches, held = patched()
        try:
            with interrupted_at(line) as ran:
                patches.undo()
        except KeyboardInterrupt:
            if again:  # and the second call is interrupted as well
                with suppress(KeyboardInterrupt), interrupted_at(again):
                    patches.undo()
            patches.undo()
            check_undone(owners, held)
            continue
        check_undone(owners, held)
        assert line > ran[0] > 20
        break
    else:
        pytest.fail(f"undoing takes more than {MOST} lines")
