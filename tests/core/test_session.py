"""The session: order of its verbs, cold rules, decisions, refusals, and what is left after it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from erta_framework import (
    CFG,
    Compute,
    Engine,
    FunctionNetwork,
    Interval,
    Needs,
    Policy,
    Profile,
    Reuse,
    Site,
    Traits,
    hookimpl,
)
from erta_framework.errors import InputError, NonFiniteError, PolicyError, ProtocolError


def interval(index, steps=4):
    start, end = 1 - index / steps, 1 - (index + 1) / steps
    return Interval(index, start, end, 1000 * start, 1000 * end)


def one_step(
    session, x, index=0, compute=None, branches=(), steps=4, *,
    model="model", path="", signals=None,
):  # fmt: skip
    """A whole step by hand; gives the outputs of its branches."""
    names = branches or ("cond",)
    session.begin(interval(index, steps), branches)
    network = FunctionNetwork(compute or (lambda: 2.0 * x), signals=signals or {})
    outputs = [session.forward(Site(model, name, path), x, network) for name in names]
    session.settle()
    session.end(x)
    return outputs


class Always(Policy):
    """Reuses whenever it is asked; remembers where it was asked."""

    scope: str = "step"
    asked: list = None  # type: ignore[assignment]

    @property
    def traits(self) -> Traits:
        return Traits(decides=self.scope)

    @hookimpl
    def decide(self, step, call):
        if self.asked is not None:
            self.asked.append((step.index, call.branch))
        return Reuse("always", scope=self.scope)


class ByBranch(Policy):
    """Reuses the unconditional branch only."""

    scope: str = "branch"
    traits = Traits(decides="branch")

    @hookimpl
    def decide(self, call):
        kind = Reuse if call.branch == "uncond" else Compute
        return kind("by branch", scope=self.scope)


X = torch.ones(1, 2, 3)


# ---------------------------------------------------------------------- order of the verbs
def test_a_noted_call_is_in_the_trace_and_nowhere_else(info):
    asked = []
    with Engine([Always(asked=asked)]).session(info()) as session:
        one_step(session, X)
        session.begin(interval(1))
        session.note(3.0 * X, model="second", reason="left alone", started=0.0)
        session.settle()
        session.end(X)
        (reused,) = one_step(session, X, 2)
    assert asked == [(2, "cond")]
    assert torch.equal(reused, 2.0 * X)
    trace = session.trace
    assert (trace.network_calls, trace.network_samples) == (2, 2)
    (call,) = trace.steps[1].calls
    assert (call.model, call.computed, call.reason) == ("second", True, "left alone")
    assert call.source is None
    assert trace.steps[2].calls[0].source == 0


def test_verbs_in_order(info):
    with Engine([]).session(info()) as session:
        for index in range(4):
            one_step(session, X, index)
    assert [step.index for step in session.trace.steps] == [0, 1, 2, 3]
    assert session.trace.network_calls == 4


def wrong_orders():
    begin = lambda s: s.begin(interval(0))  # noqa: E731
    forward = lambda s: s.forward(X, lambda: X)  # noqa: E731
    settle = lambda s: s.settle()  # noqa: E731
    end = lambda s: s.end(X)  # noqa: E731
    note = lambda s: s.note(X, reason="alone", started=0.0)  # noqa: E731
    return {
        "note first": ([], note, "note is not allowed now.*between steps"),
        "note twice": ([begin, note], note, "branch 'cond' was already answered in step 0"),
        "forward after note": ([begin, note], forward, "branch 'cond' was already answered"),
        "forward first": ([], forward, "forward is not allowed now.*between steps"),
        "settle first": ([], settle, "settle is not allowed now.*between steps"),
        "end first": ([], end, "end is not allowed now.*between steps"),
        "begin twice": ([begin], begin, "begin is not allowed now.*within a step"),
        "end without settle": ([begin, forward], end, "end is not allowed now.*within a step"),
        "settle without forward": ([begin], settle, "settle before any forward in step 0"),
        "settle twice": ([begin, forward, settle], settle, "settle is not allowed.*settled"),
        "forward after settle": ([begin, forward, settle], forward, "forward is not.*settled"),
        "begin after settle": ([begin, forward, settle], begin, "begin is not allowed.*settled"),
        "end twice": ([begin, forward, settle, end], end, "end is not allowed.*between steps"),
        "branch twice": ([begin, forward], forward, "branch 'cond' was already answered in step 0"),
        "same step again": ([begin, forward, settle, end], begin, "step 0, expected step 1 of 4"),
    }


@pytest.mark.parametrize("name", wrong_orders())
def test_wrong_order_of_verbs(info, name):
    before, wrong, message = wrong_orders()[name]
    with Engine([]).session(info()) as session:
        for verb in before:
            verb(session)
        with pytest.raises(ProtocolError, match=message):
            wrong(session)


@pytest.mark.parametrize("verb", ["begin", "forward", "settle", "end"])
def test_verbs_outside_of_the_context(info, verb):
    calls = {
        "begin": lambda s: s.begin(interval(0)),
        "forward": lambda s: s.forward(X, lambda: X),
        "settle": lambda s: s.settle(),
        "end": lambda s: s.end(X),
    }
    session = Engine([]).session(info())
    with pytest.raises(ProtocolError, match=f"{verb} is not allowed now.*not entered yet"):
        calls[verb](session)
    with session:
        pass
    with pytest.raises(ProtocolError, match=f"{verb} is not allowed now.*closed"):
        calls[verb](session)


def test_session_is_used_once(info):
    session = Engine([]).session(info())
    with session:
        pass
    with pytest.raises(ProtocolError, match=r"enter is not allowed now.*closed"), session:
        pass


@pytest.mark.parametrize("index", [1, 4, -1])
def test_steps_cannot_be_left_out(info, index):
    with (
        Engine([]).session(info()) as session,
        pytest.raises(ProtocolError, match=f"interval of step {index}, expected step 0 of 4"),
    ):
        session.begin(interval(index))


def test_one_step_too_many(info):
    with Engine([]).session(info(steps=1)) as session:
        one_step(session, X, steps=1)
        with pytest.raises(ProtocolError, match="interval of step 1, expected step 1 of 1"):
            session.begin(interval(1))


def test_late_start(info):
    with Engine([]).session(info(first=2)) as session:
        with pytest.raises(ProtocolError, match="step 0, expected step 2 of 4"):
            session.begin(interval(0))
        one_step(session, X, 2)


# ------------------------------------------------------------------ the network, at most once
def test_network_runs_at_most_once_in_a_call(info):
    class Greedy(Policy):
        @hookimpl
        def forward(self, call):
            assert call.compute() is call.compute()
            assert call.ran
            return call.compute()

    calls = []
    with Engine([Greedy()]).session(info()) as session:
        one_step(session, X, compute=lambda: calls.append(1) or 2 * X)
    assert len(calls) == session.trace.network_calls == 1


def test_network_run_by_decide_is_counted_and_not_run_again(info):
    class Peeking(Policy):
        @hookimpl
        def decide(self, step, call):
            assert torch.equal(call.compute(), 2 * X)
            return Compute("peeked") if step.index == 1 else Reuse("peeked")

    calls = []
    with Engine([Peeking()]).session(info()) as session:
        for index in range(3):
            (output,) = one_step(session, X, index, compute=lambda: calls.append(1) or 2 * X)
            assert torch.equal(output, 2 * X)
    assert len(calls) == session.trace.network_calls == 3
    assert [call.computed for call in session.trace.calls()] == [True, True, True]


def test_trace_says_what_ran_and_not_what_was_decided(info):
    class Changed(Policy):
        @hookimpl
        def decide(self):
            return Reuse("hopeful")

        @hookimpl
        def forward(self, call):
            return call.compute() if call.reused else None

    with Engine([Changed()]).session(info()) as session:
        for index in range(4):
            one_step(session, X, index)
    assert session.trace.network_calls == 4
    assert session.trace.reused_calls == 0
    assert all(call.computed and call.source is None for call in session.trace.calls())


def test_call_is_counted_although_a_wrapper_fails_after_it(info):
    class Late(Policy):
        @hookimpl(wrapper=True)
        def forward(self):
            yield
            raise ValueError("late")

    session = Engine([Late()]).session(info())
    with pytest.raises(PolicyError, match="late"), session:
        one_step(session, X)
    assert session.trace.network_calls == 1


def test_what_the_network_returns_must_be_a_tensor(info):
    with (
        pytest.raises(ProtocolError, match="the network returned tuple, it must return a tensor"),
        Engine([]).session(info()) as session,
    ):
        one_step(session, X, compute=lambda: (X,))


@pytest.mark.parametrize("output", [X[:, :1], X.double()], ids=["shape", "dtype"])
def test_residual_needs_equal_shape_and_dtype(info, output):
    with Engine([]).session(info()) as session:
        one_step(session, X, compute=lambda: output)  # nothing is remembered, nothing to refuse
    with (
        pytest.raises(ProtocolError, match="residual needs equal shapes and types"),
        Engine([Always()]).session(info()) as session,
    ):
        one_step(session, X, compute=lambda: output)


# ---------------------------------------------------------------------------- cold rules
def test_decide_is_not_asked_when_cold(info):
    asked: list = []
    with Engine([Always(asked=asked)]).session(info()) as session:
        for index in range(3):
            one_step(session, X, index)
    assert asked == [(1, "cond"), (2, "cond")]
    reasons = [(call.computed, call.reason) for call in session.trace.calls()]
    assert reasons == [(True, "cold"), (False, "always"), (False, "always")]


@pytest.mark.parametrize(
    "other", [torch.ones(2, 2, 3), torch.ones(1, 2, 3, dtype=torch.float64)], ids=["shape", "dtype"]
)
def test_change_of_shape_or_dtype_drops_the_history(info, other):
    engine = Engine([Always()])
    with engine.session(info()) as session:
        one_step(session, X, 0)
        one_step(session, other, 1, compute=lambda: 2 * other)
        one_step(session, other, 2)
        one_step(session, X, 3)
    calls = list(session.trace.calls())
    assert [call.computed for call in calls] == [True, True, False, True]
    assert [call.reason for call in calls] == ["cold", "cold", "always", "cold"]


def test_another_network_and_another_seam_are_cold(info):
    with Engine([Always()]).session(info()) as session:
        one_step(session, X, 0)
        one_step(session, X, 1, model="second")
        one_step(session, X, 2, path="trunk")
        one_step(session, X, 3)
    assert [call.computed for call in session.trace.calls()] == [True, True, True, False]


def test_branch_that_was_never_computed_makes_the_whole_step_compute(info):
    asked: list = []
    with Engine([Always(asked=asked)]).session(info()) as session:
        one_step(session, X, 0)
        one_step(session, X, 1, branches=("cond", "uncond"))
        one_step(session, X, 2, branches=("cond", "uncond"))
    calls = [(c.index, c.branch, c.computed, c.reason) for c in session.trace.calls()]
    assert calls == [
        (0, "cond", True, "cold"),
        (1, "cond", True, "cold"),
        (1, "uncond", True, "cold"),
        (2, "cond", False, "always"),
        (2, "uncond", False, "always"),
    ]
    assert asked == [(2, "cond")]


def test_guidance_interval_enters_cold(run):
    done = run([Always()], steps=8, guidance=CFG(start=0.5))
    computed = [(c.index, c.branch) for c in done.trace.calls() if c.computed]
    assert computed == [(0, "cond"), (4, "cond"), (4, "uncond")]
    assert done.network.calls == 3


def test_branches_of_different_shapes_keep_their_histories(info):
    small, large = torch.ones(1, 2, 3), torch.ones(4, 2, 3)
    with Engine([Always()]).session(info()) as session:
        for index in range(3):
            session.begin(interval(index), ("small", "large"))
            session.forward(small, lambda: 2 * small, branch="small")
            session.forward(large, lambda: 3 * large, branch="large")
            session.settle()
            session.end(small)
    assert session.trace.network_calls == 2


# ------------------------------------------------------------------------------ decisions
def test_decision_is_shared_by_the_branches(run):
    asked: list = []
    done = run([Always(asked=asked)], steps=3, guidance=CFG())
    assert asked == [(1, "cond"), (2, "cond")]
    assert done.network.calls == 2


def test_decision_of_one_branch(run):
    asked: list = []
    run([Always(asked=asked, scope="branch")], steps=3, guidance=CFG())
    assert asked == [(1, "cond"), (1, "uncond"), (2, "cond"), (2, "uncond")]
    done = run([ByBranch()], steps=4, guidance=CFG())
    assert [(c.branch, c.computed) for c in done.trace.steps[3].calls] == [
        ("cond", True),
        ("uncond", False),
    ]
    assert done.network.calls == 5
    # the same rule, shared: the first branch decides for both
    assert run([ByBranch(scope="step")], steps=4, guidance=CFG()).network.calls == 8


@pytest.mark.parametrize("answer", [True, "compute", 0, Compute])
def test_impossible_decision(run, answer):
    class Odd(Policy):
        @hookimpl
        def decide(self):
            return answer

    with pytest.raises(PolicyError, match=r"Odd\(\) returned .* from decide at step 1"):
        run([Odd()])


def test_wrapper_of_decide_sees_and_replaces_the_answer(run):
    class Agree(Policy):
        @hookimpl(wrapper=True)
        def decide(self, step):
            decision = yield
            assert isinstance(decision, Reuse)
            return Compute("a rank needs it") if step.index == 2 else decision

    done = run([Always(), Agree()], steps=4)
    assert done.trace.computed_steps == (0, 2)
    assert done.trace.steps[2].calls[0].reason == "a rank needs it"


# ---------------------------------------------------------------- what forward may return
class Answers(Policy):
    """Gives one answer to reused calls, or to computed ones."""

    make: object = None
    to_reused: bool = True

    @hookimpl
    def decide(self):
        return Reuse("always")

    @hookimpl
    def forward(self, call):
        return self.make(call) if call.reused == self.to_reused else None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda call: call.x[:, :1], r"returned \(2, 1, 3, 3\) torch.float32 on cpu from forward"),
        (lambda call: call.x.double(), r"torch.float64 on cpu from forward at step 1.*float32"),
        (lambda call: 3.0, "returned float from forward at step 1 of request 'toy', not a tensor"),
        (lambda call: call.x.to("meta"), "torch.float32 on meta from forward.*on cpu"),
    ],
    ids=["shape", "dtype", "no tensor", "device"],
)
def test_impossible_prediction(run, make, message):
    with pytest.raises(PolicyError, match="Answers.*" + message):
        run([Answers(make=make)])


def test_compute_that_did_not_compute(run):
    policy = Answers(make=lambda call: call.x + 1, to_reused=False)
    with pytest.raises(PolicyError, match="answered branch 'cond' without the network at step 0"):
        run([policy])


class Half(Policy):
    @hookimpl(wrapper=True)
    def forward(self):
        return 0.5 * (yield)


class HalfOfAll(Half):
    traits = Traits(corrects_computed=True)


def test_correction_of_a_computed_output_is_refused(run):
    with pytest.raises(PolicyError, match=r"Half\(\) replaced a computed output at step 0"):
        run([Half()])


def test_correction_of_a_computed_output_is_allowed_where_declared(run):
    done = run([HalfOfAll()], steps=1)
    halved = run(steps=1, network=lambda x, t, c: 0.5 * done.network(x, t, c))
    assert torch.equal(done.sample, halved.sample)


def test_correction_never_reaches_the_history(info):
    seen = []

    class Look(Policy):
        traits = Traits(memory=Needs(evaluations=1, pairs=True))

        @hookimpl
        def pre_step(self):
            pass

        @hookimpl
        def decide(self, call):
            seen.append(call.history[0].output.clone())
            return Reuse("look")

    with Engine([HalfOfAll(), Look()]).session(info()) as session:
        one_step(session, X, 0)
        (output,) = one_step(session, X, 1)
    assert torch.equal(seen[0], 2 * X)
    assert torch.equal(output, X)  # half of x + residual


def test_writing_into_the_output_of_the_network_is_refused_and_leaves_the_history(info):
    class Writes(Policy):
        traits = Traits(memory=Needs(evaluations=1))

        @hookimpl(wrapper=True)
        def forward(self):
            return (yield).mul_(0.5)

    def drive(session):
        with session:
            session.begin(interval(0))
            try:
                session.forward(X, lambda: 2 * X)
            finally:
                (kept,) = session._history.kept.values()
                assert torch.equal(kept[0].residual, X)

    with pytest.raises(PolicyError, match=r"Writes\(\) wrote into the network's output at step 0"):
        drive(Engine([Writes()]).session(info()))


def test_inference_mode_works(run, reuse_on):
    with torch.inference_mode():
        done = run([reuse_on(steps=(1, 2))], steps=4)
    assert done.network.calls == 2


# ------------------------------------------------------------------------- the interval
class Moves(Policy):
    """Changes the interval of one step."""

    make: object = None
    at: int = 1

    @hookimpl
    def adjust_interval(self, step):
        return self.make(step.interval) if step.index == self.at else None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: 0.5, "returned 0.5 from adjust_interval, not an Interval"),
        (lambda i: False, "returned False from adjust_interval, not an Interval"),
        (lambda i: 0, "returned 0 from adjust_interval, not an Interval"),
        (lambda i: (i.start, i.end), "from adjust_interval, not an Interval"),
        (lambda i: replace(i, end=i.start + 0.1), "outside what remains of the schedule"),
        (lambda i: replace(i, end=-0.1), "outside what remains of the schedule"),
        (lambda i: replace(i, end=float("nan")), "to nan, outside what remains"),
        (lambda i: replace(i, end_time=float("nan")), "network time after step 1 to nan"),
        (lambda i: replace(i, end_time=float("inf")), "network time after step 1 to inf"),
        (lambda i: replace(i, start=0.89), "moved the past"),
        (lambda i: replace(i, time=1.0), "moved the past"),
        (lambda i: replace(i, index=2), "moved the past"),
        (lambda i: replace(i, end=torch.tensor(0.4)), "plain numbers"),
    ],
)
def test_impossible_interval(run, make, message):
    with pytest.raises(PolicyError, match="Moves.*" + message):
        run([Moves(make=make)], steps=4)


def test_last_interval_must_end_where_the_schedule_ends(run):
    short = Moves(make=lambda i: replace(i, end=0.01), at=3)
    with pytest.raises(PolicyError, match=r"ends the last step at 0\.01.*schedule ends at 0\.0"):
        run([short], steps=4)


def test_driver_that_ends_early_is_blamed_itself(info):
    with Engine([]).session(info(steps=1)) as session:
        session.begin(Interval(0, 1.0, 0.25, 1000.0, 250.0))
        session.forward(X, lambda: X)
        with pytest.raises(PolicyError, match=r"the driver ends the last step at 0\.25"):
            session.settle()


def test_moved_interval_is_where_the_next_one_starts(run):
    move = Moves(make=lambda i: replace(i, end=0.8, end_time=812.0))
    done = run([move], steps=4)
    steps = done.trace.steps
    assert (steps[1].end, steps[2].start, steps[2].time) == (0.8, 0.8, 812.0)
    assert done.network.times[2] == 812.0
    assert steps[2].end == 0.5  # shift 3 at u = 1/4
    assert steps[3].end == 0.0


def test_adjuster_sees_what_was_answered(run, reuse_on):
    seen = []

    class Look(Policy):
        @hookimpl
        def adjust_interval(self, step, answers):
            seen.append({name: (a.computed, a.source) for name, a in answers.items()})

    run([reuse_on(steps=(1, 2)), Look()], steps=4, guidance=CFG())
    both = lambda pair: {"cond": pair, "uncond": pair}  # noqa: E731
    assert seen == [
        both((True, None)),
        both((False, 0)),
        both((False, 0)),
        both((True, None)),
    ]


# --------------------------------------------------------------------------- not finite
class Poisons(Policy):
    """Predicts NaN or infinity on reused steps."""

    value: float = float("nan")

    @hookimpl
    def decide(self, step):
        return Reuse("poison") if step.index in (2, 3) else None

    @hookimpl
    def forward(self, step, call):
        if not call.reused:
            return None
        output = call.x.clone()
        if step.index == 2:
            output[-1, -1, -1, -1] = self.value
        return output


class StaticPoison(Poisons):
    traits = Traits(static=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dynamic_reuse_that_is_not_finite_is_computed(run, make_noise, value, dtype):
    done = run([Poisons(value=value)], steps=5, latents=make_noise().to(dtype))
    assert done.trace.computed_steps == (0, 1, 2, 4)
    (call,) = done.trace.steps[2].calls
    assert call.reason == "reused output was not finite"
    assert done.sample.isfinite().all()
    assert done.network.calls == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_static_reuse_that_is_not_finite_is_named_afterwards(run, make_noise, value, dtype):
    done = run([StaticPoison(value=value)], steps=5, latents=make_noise().to(dtype))
    assert done.trace.computed_steps == (0, 1, 4)
    with pytest.raises(NonFiniteError, match=r"'toy'.*branch 'cond' at step 2 is not finite"):
        done.trace.raise_if_nonfinite()


def test_large_half_precision_values_are_finite(run):
    # their sum would overflow
    latents = torch.full((1, 2, 3, 3), 60000.0, dtype=torch.float16)
    done = run([StaticPoison(value=1.0)], batch=1, latents=latents, network=lambda x, t, c: 0 * x)
    done.trace.raise_if_nonfinite()
    assert len(done.trace.extremes) == 2


class ReadsBack(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "masked_select")

    def __init__(self):
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guidance", [None, CFG(), CFG(batched=True)], ids=repr)
def test_static_schedule_reads_nothing_back(run, make_noise, reuse_on, guidance):
    def network(x, t, c):
        return 0.5 * x

    def counted(policy):
        with ReadsBack() as mode:
            done = run([policy], steps=6, guidance=guidance, network=network, latents=make_noise())
        assert done.trace.reused_calls > 0
        return mode.counts

    class Dynamic(Always):
        pass

    assert counted(reuse_on(steps=(1, 2, 4))) == {}
    assert counted(Dynamic())["_local_scalar_dense"] == (10 if guidance == CFG() else 5)


@pytest.mark.parametrize("guidance", [None, CFG(), CFG(batched=True)], ids=repr)
def test_static_schedule_runs_on_a_device_without_values(run, reuse_on, guidance):
    # tensors of the meta device have no values: reading one back, or copying it, raises
    def done(policy):
        latents = torch.empty(2, 2, 3, 3, device="meta")
        return run([policy], steps=6, latents=latents, guidance=guidance, network=network)

    def network(x, t, c):
        return 0.5 * x

    static = done(reuse_on(steps=(1, 2, 4)))
    assert static.trace.computed_steps == (0, 3, 5)
    assert static.sample.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        done(Always())


# ------------------------------------------------------------------- what is left behind
class Hoards(Policy):
    """Keeps tensors in its states, and fails where it is told to."""

    fail_at: str = ""
    refs: list = None  # type: ignore[assignment]
    ended: list = None  # type: ignore[assignment]

    traits = Traits(memory=Needs(evaluations=2, pairs=True))

    def check(self, hook, step=None):
        if self.fail_at == hook and (step is None or step.index == 2):
            raise RuntimeError(f"failed in {hook}")

    @hookimpl
    def on_session_start(self, session):
        kept = session.state_of(self, lambda: {"x": torch.zeros(3)})
        self.refs.append(weakref.ref(kept["x"]))
        self.check("on_session_start")

    @hookimpl
    def decide(self, step, call):
        self.check("decide", step)
        return Reuse("hoard")

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        kept = call.state_of(self, dict)
        kept["output"] = output * 1.0
        self.refs.append(weakref.ref(kept["output"]))
        self.refs.extend(weakref.ref(evaluation.residual) for evaluation in call.history)
        self.check("forward", step)
        return output

    @hookimpl
    def post_step(self, step):
        self.check("post_step", step)

    @hookimpl
    def on_session_end(self, session, error):
        self.ended.append(error)
        self.check("on_session_end")


@pytest.mark.parametrize(
    "hook", ["", "on_session_start", "decide", "forward", "post_step", "on_session_end"]
)
def test_session_leaves_nothing_behind(info, hook):
    policy = Hoards(fail_at=hook, refs=[], ended=[])
    session = Engine([policy]).session(info())

    def drive():
        with session:
            for index in range(4):
                one_step(session, X, index)

    raised = None
    if hook == "":
        drive()
    else:
        with pytest.raises(PolicyError, match=f"in hook {hook!r}") as caught:
            drive()
        raised = caught.value
        raised.__traceback__ = raised.__cause__.__traceback__ = None
        del caught
    assert (raised is None) == (hook == "")
    assert session._history.kept == {}
    assert session._history.bytes == 0
    assert session.info.states._states == {}
    assert session._answers == {}
    gc.collect()
    assert policy.refs
    assert [ref() for ref in policy.refs if ref() is not None] == []
    assert len(policy.ended) == 1
    if hook in ("", "on_session_end"):
        assert policy.ended == [None]
    else:
        assert policy.ended == [raised]


def test_every_policy_hears_of_the_end_although_one_fails(info):
    first = Hoards(fail_at="on_session_end", refs=[], ended=[])
    second = Hoards(fail_at="on_session_end", refs=[], ended=[])
    third = Hoards(refs=[], ended=[])
    with (
        pytest.raises(PolicyError, match="RuntimeError in hook 'on_session_end'") as error,
        Engine([first, second, third]).session(info()),
    ):
        pass
    assert (first.ended, second.ended, third.ended) == ([None], [None], [None])
    (note,) = (n for n in error.value.__notes__ if "as well" in n)
    assert "Hoards" in note


def test_error_of_the_request_is_not_replaced_by_one_at_its_end(info):
    policy = Hoards(fail_at="on_session_end", refs=[], ended=[])
    own = InputError("the real reason")
    with pytest.raises(InputError) as error, Engine([policy]).session(info()):
        raise own
    assert error.value is own
    assert any("on_session_end failed as well" in note for note in own.__notes__)
    assert policy.ended == [own]


def test_interrupt_closes_the_session(info):
    policy = Hoards(refs=[], ended=[])
    session = Engine([policy]).session(info())

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), session:
        one_step(session, X, compute=interrupted)
    assert isinstance(policy.ended[0], KeyboardInterrupt)
    assert session._history.kept == {}


def test_emitted_profiles(info):
    class Emits(Policy):
        kind: str = "toy"

        @hookimpl
        def on_session_end(self, session):
            return Profile(self.kind, {}, {"sum": torch.ones(1)}, samples=session.shape[0])

    class Silent(Policy):
        @hookimpl
        def on_session_end(self):
            return None

    engine = Engine([Emits(kind="a"), Silent(), Emits(kind="b")])
    with engine.session(info()) as session:
        assert session.emitted == []
    assert [profile.kind for profile in session.emitted] == ["a", "b"]


def test_two_sessions_of_one_description_share_nothing(info):
    class Counts(Policy):
        seen: list = None  # type: ignore[assignment]

        @hookimpl
        def pre_step(self, step):
            steps = step.session.state_of(self, list)
            steps.append(step.index)
            self.seen.append(tuple(steps))

        @hookimpl
        def decide(self):
            return Reuse("always")

    policy = Counts(seen=[])
    engine, facts = Engine([policy]), info()
    with engine.session(facts) as one, engine.session(facts) as other:
        (first,) = one_step(one, X, 0)
        (second,) = one_step(other, X, 0, compute=lambda: 5 * X)
        (third,) = one_step(one, X, 1)
        (fourth,) = one_step(other, X, 1)
    assert policy.seen == [(0,), (0,), (0, 1), (0, 1)]
    assert torch.equal(third, first)
    assert torch.equal(fourth, second)
    assert facts.states._states == {}


def test_features_are_offered_by_name(info):
    seen = []

    class Asks(Policy):
        @hookimpl
        def decide(self, call):
            seen.append(call.feature("modulated"))
            return call.feature("absent")

    def drive(session):
        with session:
            for index in range(2):
                one_step(session, X, index, signals={"modulated": lambda: 7 * X})

    with pytest.raises(PolicyError, match=r"Asks\(\) raised KeyError.*'absent'"):
        drive(Engine([Asks()]).session(info()))
    assert torch.equal(seen[0], 7 * X)
