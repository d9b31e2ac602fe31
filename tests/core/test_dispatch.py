"""Compiled hooks call as pluggy does: the same calls in the same order, the same outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erta_framework.plugins._dispatch import compile_hook

SPEC, IMPL = pluggy.HookspecMarker("test"), pluggy.HookimplMarker("test")


class Specs:
    @SPEC(firstresult=True)
    def first(self, step, call):
        """Stops at the first answer."""

    @SPEC
    def every(self, step, call):
        """Asks everybody."""


class Refusal(Exception):
    """What a hook of these tests raises."""


@dataclass
class Plain:
    """Answers, passes on, or raises; takes some of the arguments."""

    label: int
    answer: int | None
    raises: bool
    takes: str
    events: list[Any]

    def act(self, *arguments: int) -> int | None:
        self.events.append((self.label, arguments))
        if self.raises:
            raise Refusal(self.label)
        return self.answer

    def plugin(self) -> object:
        functions: dict[str, Callable[..., Any]] = {
            "": lambda plugin: self.act(),
            "step": lambda plugin, step: self.act(step),
            "call": lambda plugin, call: self.act(call),
            "both": lambda plugin, step, call: self.act(step, call),
            "turned": lambda plugin, call, step: self.act(call, step),
        }
        return make_plugin(functions[self.takes], {})


@dataclass
class Wrapper:
    """Encloses the others: passes on, replaces, catches, or raises before or after them."""

    label: int
    kind: str
    events: list[Any]

    def plugin(self) -> object:
        def function(plugin: object, step: int) -> Any:
            self.events.append((self.label, "before", step))
            if self.kind == "raises before":
                raise Refusal(self.label)
            try:
                answer = yield
            except Refusal as error:
                self.events.append((self.label, "caught", error.args))
                if self.kind == "catches":
                    return -self.label
                raise
            self.events.append((self.label, "after", str(answer)))
            if self.kind == "raises after":
                raise Refusal(self.label)
            return self.label if self.kind == "replaces" else answer

        return make_plugin(function, {"wrapper": True})


KINDS = ("passes", "replaces", "catches", "raises before", "raises after")


def make_plugin(function: Callable[..., Any], options: dict[str, bool]) -> object:
    marked = IMPL(**options)(function)
    return type("Plugin", (), {"first": marked, "every": marked})()


def make_caller(parts: Sequence[Plain | Wrapper], hook: str) -> pluggy.HookCaller:
    manager = pluggy.PluginManager("test")
    manager.add_hookspecs(Specs)
    for part in parts:
        manager.register(part.plugin())
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    return caller


def observe(call: Callable[[], Any], events: list[Any]) -> tuple[Any, ...]:
    events.clear()
    try:
        outcome: tuple[Any, ...] = ("answer", call())
    except Refusal as error:
        outcome = ("error", error.args, error.__cause__, error.__suppress_context__)
    return (*outcome, tuple(events))


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Plain | Wrapper], list[Any]]:
    events: list[Any] = []
    parts: list[Plain | Wrapper] = []
    for label in range(1, draw(st.integers(0, 6)) + 1):
        if draw(st.booleans()):
            parts.append(Wrapper(label, draw(st.sampled_from(KINDS)), events))
        else:
            answer = draw(st.one_of(st.none(), st.integers(-3, 3)))
            takes = draw(st.sampled_from(["", "step", "call", "both", "turned"]))
            parts.append(Plain(label, answer, draw(st.booleans()), takes, events))
    return parts, events


@given(chains(), st.sampled_from(["first", "every"]))
def test_compiled_hooks_call_as_pluggy_does(chain, hook):
    parts, events = chain
    caller = make_caller(parts, hook)
    compiled = compile_hook(caller)
    expected = observe(lambda: caller(step=7, call=9), events)
    assert observe(lambda: compiled(7, 9), events) == expected


@pytest.mark.parametrize("yields", [0, 2])
def test_a_wrapper_must_yield_once_as_in_pluggy(yields):
    def function(plugin):
        for _ in range(yields):
            yield
        return 1

    manager = pluggy.PluginManager("test")
    manager.add_hookspecs(Specs)
    manager.register(make_plugin(function, {"wrapper": True}))
    caller = manager.hook.first
    for call in (lambda: caller(step=7, call=9), lambda: compile_hook(caller)(7, 9)):
        with pytest.raises(RuntimeError, match=r"did not yield|second yield|yielded twice"):
            call()


def test_hooks_that_ask_everybody_give_every_answer():
    manager = pluggy.PluginManager("test")
    manager.add_hookspecs(Specs)
    for answer in (1, None, 3):
        function = IMPL(lambda plugin, call, answer=answer: answer and answer * call)
        manager.register(type("Plugin", (), {"every": function})())
    assert compile_hook(manager.hook.every)(7, 10) == [30, 10]
