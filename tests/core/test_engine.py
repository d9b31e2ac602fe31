"""The engine: what it refuses, in which order it calls, whom it blames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from erta_framework import (
    CFG,
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
from erta_framework.errors import (
    CapabilityError,
    ConflictError,
    ErtaError,
    InputError,
    PolicyError,
)
from erta_framework.plugins import HOOKS


class Listed(Policy):
    """Appends its tag to a list in every hook."""

    tag: str = ""
    log: list = None  # type: ignore[assignment]

    def note(self, hook):
        self.log.append(f"{hook}:{self.tag}")

    @hookimpl
    def on_session_start(self):
        self.note("start")

    @hookimpl
    def pre_step(self):
        self.note("pre")

    @hookimpl
    def decide(self):
        self.note("decide")

    @hookimpl
    def forward(self):
        self.note("forward")

    @hookimpl
    def post_step(self):
        self.note("post")

    @hookimpl
    def on_session_end(self):
        self.note("end")


class Wrapping(Policy):
    """Notes when it is entered and left."""

    tag: str = ""
    log: list = None  # type: ignore[assignment]

    @hookimpl(wrapper=True)
    def forward(self):
        self.log.append(f"in:{self.tag}")
        output = yield
        self.log.append(f"out:{self.tag}")
        return output


class Adjusting(Policy):
    @hookimpl
    def adjust_interval(self):
        return None


class Recipe(Policy):
    """Stands for two policies."""

    log: list = None  # type: ignore[assignment]

    def parts(self):
        return (Listed(tag="r1", log=self.log), Listed(tag="r2", log=self.log))


# ------------------------------------------------------------------ order and explanation
def test_listed_order_is_call_order(run):
    log: list[str] = []
    run([Listed(tag=tag, log=log) for tag in "abc"], steps=2)
    step = [f"{hook}:{tag}" for hook in ("pre", "forward", "post") for tag in "abc"]
    warm = [f"{hook}:{tag}" for hook in ("pre", "decide", "forward", "post") for tag in "abc"]
    start, end = [f"start:{tag}" for tag in "abc"], [f"end:{tag}" for tag in "abc"]
    assert log == start + step + warm + end


def test_wrappers_enclose_in_listed_order(run):
    log: list[str] = []
    listed = Listed(tag="x", log=log)
    run([Wrapping(tag="a", log=log), listed, Wrapping(tag="b", log=log)], steps=1)
    assert [line for line in log if line[0] in "iof"] == [
        "in:a",
        "in:b",
        "forward:x",
        "out:b",
        "out:a",
    ]


def test_first_answer_wins(run, reuse_on):
    class Never(Policy):
        @hookimpl
        def decide(self):
            return Compute("never reuse")

    one = run([Never(), reuse_on(steps=(1, 2))], steps=4)
    other = run([reuse_on(steps=(1, 2)), Never()], steps=4)
    assert one.network.calls == 4
    assert other.network.calls == 2
    assert [c.reason for c in other.trace.calls()] == ["cold", "listed", "listed", "never reuse"]


def test_explain_lists_the_real_call_order(reuse_on):
    class Corrector(Policy):
        @hookimpl(wrapper=True)
        def forward(self):
            return (yield)

    class Predictor(Policy):
        traits = Traits(memory=Needs(evaluations=3, pairs=True))

        @hookimpl
        def forward(self):
            return None

    engine = Engine([Predictor(), reuse_on(steps=(1,)), Corrector(), Adjusting()])
    assert engine.explain() == "\n".join(
        [
            "policies, in call order:",
            f"  0  {engine.policies[0]!r}",
            f"  1  {engine.policies[1]!r}",
            f"  2  {engine.policies[2]!r}",
            f"  3  {engine.policies[3]!r}",
            "hooks, in call order:",
            "  on_session_start  -",
            "  pre_step          -",
            "  decide            reuse_on -> core",
            "  assign            -",
            "  forward           [corrector] -> predictor -> core",
            "  adjust_interval   adjusting",
            "  adjust_prediction -",
            "  post_step         -",
            "  on_session_end    -",
            "remembered per branch: 3 evaluations with inputs and outputs; "
            "schedule is decided while sampling",
        ]
    )


def test_explain_of_nothing():
    assert Engine([]).explain() == "no policies: every step is computed"


def test_hooks_and_implementers(reuse_on):
    reuse, wrap = reuse_on(), Wrapping(log=[])
    engine = Engine([reuse, wrap])
    assert engine.hooks_of(reuse) == ("decide",)
    assert engine.implementers("forward") == (wrap,)
    assert engine.active == {"decide", "forward"}


# ------------------------------------------------------------------------------- recipes
def test_recipes_are_flattened_in_place(run):
    log: list[str] = []
    engine = Engine([Listed(tag="a", log=log), Recipe(log=log), Listed(tag="z", log=log)])
    assert [policy.tag for policy in engine.policies] == ["a", "r1", "r2", "z"]


def test_recipes_nest():
    class Outer(Policy):
        def parts(self):
            return (Recipe(log=[]), Adjusting())

    names = [policy.name for policy in Engine([Outer()]).policies]
    assert names == ["listed", "listed", "adjusting"]


def test_recipe_that_lists_itself_beside_others():
    class Both(Adjusting):
        def parts(self):
            return (Listed(log=[]), self)

    assert [policy.name for policy in Engine([Both()]).policies] == ["listed", "both"]


def test_recipe_with_a_wrong_part_is_named():
    class Broken(Policy):
        def parts(self):
            return (Adjusting,)

    with pytest.raises(PolicyError, match=r"broken\.parts\[0\] is the class Adjusting"):
        Engine([Broken()])


# ------------------------------------------------------------------------------ refusals
def test_class_instead_of_instance():
    with pytest.raises(PolicyError, match=r"policies\[1\] is the class Adjusting, not an instance"):
        Engine([Listed(log=[]), Adjusting])  # type: ignore[list-item]


def test_something_that_is_no_policy():
    with pytest.raises(PolicyError, match=r"policies\[0\] is 'ertacache' of type str"):
        Engine(["ertacache"])  # type: ignore[list-item]


def test_policy_instead_of_list():
    with pytest.raises(PolicyError, match=r"not a list; write \[.*Adjusting\(\)\]"):
        Engine(Adjusting())  # type: ignore[arg-type]


def test_same_object_twice(reuse_on):
    policy = reuse_on()
    with pytest.raises(PolicyError, match=r"the same object .*ReuseOn.* stands twice"):
        Engine([policy, policy])


def test_same_settings_twice_are_two_policies(run, reuse_on):
    assert reuse_on(steps=(1,)) != reuse_on(steps=(1,))
    assert run([reuse_on(steps=(1,)), reuse_on(steps=(1,))]).network.calls == 7


def test_policy_without_hooks():
    class Idle(Policy):
        pass

    with pytest.raises(PolicyError, match=r"Idle.* implements no hook; mark a method .*decide"):
        Engine([Idle()])


def test_misspelt_hook():
    class Typo(Policy):
        @hookimpl
        def deside(self):
            return None

    with pytest.raises(PolicyError, match=r"Typo.* unknown hook 'deside'; did you mean 'decide'"):
        Engine([Typo()])


def test_hook_without_its_mark():
    class Unmarked(Policy):
        @hookimpl
        def pre_step(self):
            pass

        def decide(self):
            return Reuse("never asked")

    with pytest.raises(PolicyError, match=r"Unmarked.* method 'decide' without @hookimpl"):
        Engine([Unmarked()])


def test_override_that_loses_the_mark(reuse_on):
    class Child(reuse_on):
        def decide(self, step):
            return Reuse("never asked")

    with pytest.raises(PolicyError, match=r"Child.* method 'decide' without @hookimpl"):
        Engine([Child()])


def test_argument_that_the_hook_does_not_offer():
    class Greedy(Policy):
        @hookimpl
        def decide(self, step, sigma):
            return None

    with pytest.raises(PolicyError, match=r"(?s)Greedy.* does not fit a hook.*sigma"):
        Engine([Greedy()])


def test_wrapper_that_is_no_generator():
    class NoYield(Policy):
        @hookimpl(wrapper=True)
        def forward(self):
            return None

    with pytest.raises(PolicyError, match=r"(?s)NoYield.* does not fit a hook.*generator"):
        Engine([NoYield()])


@pytest.mark.parametrize("options", [{"tryfirst": True}, {"trylast": True}])
def test_order_is_not_for_policies_to_choose(options):
    class Pushy(Policy):
        @hookimpl(**options)
        def decide(self):
            return None

    with pytest.raises(PolicyError, match=r"Pushy.*listed order is the call order"):
        Engine([Pushy()])


def test_two_owners_of_the_interval():
    class Other(Adjusting):
        pass

    with pytest.raises(ConflictError, match=r"one owner.*Adjusting.* and .*Other.*remove one"):
        Engine([Adjusting(), Other()])


def test_settings_are_checked_once_at_build():
    class Careful(Adjusting):
        def prepare(self):
            raise InputError("no such file")

    class Sloppy(Adjusting):
        def prepare(self):
            raise KeyError("ratio")

    with pytest.raises(InputError, match="no such file"):
        Engine([Careful()])
    with pytest.raises(PolicyError, match=r"Sloppy.* raised KeyError in prepare\(\): 'ratio'"):
        Engine([Sloppy()])


def test_policies_are_frozen(reuse_on):
    policy = reuse_on(steps=(1,))
    with pytest.raises(AttributeError):
        policy.steps = (2,)
    with pytest.raises(TypeError):
        reuse_on((1,))


def test_needs_are_the_largest_of_each(reuse_on):
    class Deep(Adjusting):
        traits = Traits(memory=Needs(evaluations=4))

    class Paired(Listed):
        traits = Traits(memory=Needs(evaluations=2, pairs=True))

    assert Engine([]).traits.memory == Needs()
    assert Engine([Adjusting()]).traits.memory == Needs()
    assert Engine([reuse_on()]).traits.memory == Needs(evaluations=1)
    assert Engine([reuse_on(), Deep(), Paired(log=[])]).traits.memory == Needs(4, pairs=True)


def test_static_only_if_every_policy_is(reuse_on):
    assert Engine([]).traits.static
    assert Engine([reuse_on()]).traits.static
    assert not Engine([reuse_on(), Adjusting()]).traits.static


def test_missing_capability_names_all_sides(info):
    class Trunk(Adjusting):
        traits = Traits(requires=frozenset({"trunk", "first_order"}))

    with pytest.raises(CapabilityError) as error:
        Engine([Trunk()]).session(info(solver="Heun()", capabilities=frozenset({"velocity"})))
    assert "Trunk" in str(error.value)
    assert "requires first_order, trunk, which Heun() does not offer" in str(error.value)
    assert "it offers velocity" in str(error.value)


# --------------------------------------------------------------------- policies that raise
def raising(hook, error):
    """A policy that raises in one hook, from step 2 on where the hook has a step."""

    def implementation(self, step):
        if step.index >= 2:
            raise error

    def without_step(self, session):
        raise error

    body = implementation if hook not in ("on_session_start", "on_session_end") else without_step
    body.__name__ = hook
    return type("Faulty", (Policy,), {"__annotations__": {}, hook: hookimpl(body)})()


# `assign` is asked where a network has modules: tests of modules raise in it
HERE = [hook for hook in HOOKS if hook != "assign"]


@pytest.mark.parametrize("hook", HERE)
def test_error_names_plugin_hook_step_and_type(run, hook):
    boom = ZeroDivisionError("boom")
    with pytest.raises(PolicyError) as error:
        run([raising(hook, boom)], steps=5, guidance=CFG())
    message = str(error.value)
    assert f"Faulty() raised ZeroDivisionError in hook '{hook}'" in message.replace(
        "raising.<locals>.", ""
    )
    assert message.endswith("of request 'toy': boom")
    assert ("at step 2" in message) == (hook not in ("on_session_start", "on_session_end"))
    assert error.value.__cause__ is boom


@pytest.mark.parametrize("hook", HERE)
def test_our_own_errors_pass_with_a_note(run, hook):
    own = InputError("too few prompts")
    with pytest.raises(InputError) as error:
        run([raising(hook, own)], steps=5)
    assert error.value is own
    assert any(f"in hook '{hook}'" in note for note in error.value.__notes__)


@pytest.mark.parametrize("hook", HERE)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_unchanged(run, hook, kind):
    stop = kind("stop")
    with pytest.raises(kind) as error:
        run([raising(hook, stop)], steps=5)
    assert error.value is stop


@pytest.mark.parametrize("where", ["setup", "teardown"])
@pytest.mark.parametrize("hook", ["decide", "forward"])
def test_wrapper_that_raises(run, reuse_on, hook, where):
    def body(self, step):
        if where == "setup" and step.index == 3:
            raise IndexError("wrapped")
        answer = yield
        if where == "teardown" and step.index == 3:
            raise IndexError("wrapped")
        return answer

    body.__name__ = hook
    kind = type("Faulty", (Policy,), {"__annotations__": {}, hook: hookimpl(wrapper=True)(body)})
    with pytest.raises(PolicyError, match=rf"Faulty\(\) raised IndexError in hook '{hook}' at st"):
        run([Wrapping(log=[]), kind(), reuse_on(steps=(1, 3))], steps=5)


def test_the_raiser_is_blamed_and_not_those_around_it(run):
    class Outer(Policy):
        @hookimpl(wrapper=True)
        def forward(self):
            return (yield)

    class Inner(Policy):
        @hookimpl
        def forward(self):
            return [][0]

    with pytest.raises(PolicyError, match=r"Inner\(\) raised IndexError"):
        run([Outer(), Inner()])


def test_wrapper_that_yields_twice_is_named(run):
    class Twice(Policy):
        @hookimpl(wrapper=True)
        def forward(self):
            yield
            yield

    with pytest.raises(PolicyError, match=r"Twice\(\) raised RuntimeError in hook 'forward'"):
        run([Twice()])


class OutOfMemory(RuntimeError):
    pass


def test_errors_of_the_network_pass_unchanged(run):
    failure = OutOfMemory("no memory")

    def network(x, t, c):
        raise failure

    class Around(Policy):
        @hookimpl(wrapper=True)
        def forward(self):
            return (yield)

    class Calling(Policy):
        @hookimpl
        def forward(self, call):
            return call.compute()

    for policies in ([], [Around()], [Calling()], [Around(), Calling()]):
        with pytest.raises(OutOfMemory) as error:
            run(policies, network=network)
        assert error.value is failure
    assert any("branch 'cond' at step 0" in note for note in failure.__notes__)


def test_policy_may_handle_an_error_of_the_network(run):
    class Fallback(Policy):
        @hookimpl
        def forward(self, call):
            if not call.reused:
                return None
            try:
                return call.compute()
            except OutOfMemory:
                return call.x + call.history[0].residual

    calls = []

    def network(x, t, c):
        calls.append(1)
        if len(calls) > 1:
            raise OutOfMemory
        return 0.5 * x

    class Always(Policy):
        @hookimpl
        def decide(self):
            return Reuse("if need be")

    done = run([Always(), Fallback()], steps=3, network=network)
    assert done.trace.network_calls == 1
    assert len(calls) == 3


def test_errors_are_one_family():
    for kind in (PolicyError, ConflictError, CapabilityError, InputError):
        assert issubclass(kind, ErtaError)
    assert issubclass(InputError, ValueError)


def test_engine_serves_many_requests(run, reuse_on):
    engine = Engine([reuse_on(steps=(1, 2))])
    schedule = FlowEuler().schedule(4)
    request = Request(
        latents=torch.ones(1, 2, 2), cond=torch.zeros(1, 1), schedule=schedule, request_id="a"
    )
    loop = SamplingLoop(engine, FlowEuler())
    one = loop.run(lambda x, t, c: 0.5 * x, request)
    other = loop.run(lambda x, t, c: 0.5 * x, replace(request, request_id="b"))
    assert torch.equal(one.sample, other.sample)
    assert (one.trace.request_id, other.trace.request_id) == ("a", "b")
    assert one.trace.network_calls == other.trace.network_calls == 2
