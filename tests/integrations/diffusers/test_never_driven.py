"""What was attached and is never driven, or never reuses anything, is said, with the remedy."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework import Policy, Reuse, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError, UnusedWarning
from erta_framework.session import Needs
from erta_integrations.diffusers import Attachment, attach
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, counted, drawn, flow
from tiny_pipelines.toys import Net, Toy, last, loop_by_hand

SKIP = SkipPolicy(every=2)
SD = FAMILIES["sd"]


def use(pipe: Any, *jobs: Callable[[], object], **options: Any) -> Attachment:
    """Do jobs within the block of an attachment."""
    with attach(pipe, [SKIP], **options) as run:
        for job in jobs:
            job()
    return run


# ------------------------------------------------------------------------- without `with`
def test_an_attachment_that_is_never_entered_warns_when_it_is_dropped() -> None:
    pipe = Toy(Net())
    run = attach(pipe, [SKIP])
    pipe(0)
    assert pipe.transformer.made == 6
    assert "never entered, so nothing was reused; write `with attach(...) as run:`" in run.summary()
    held = [run]
    del run
    with pytest.warns(UnusedWarning, match="attachment to Toy was never entered"):
        held.clear()


def test_an_attachment_that_was_refused_does_not_warn() -> None:
    with pytest.raises(CapabilityError):
        attach(Toy(Net()), [SKIP], networks=["unet"])
    with pytest.raises(CapabilityError):
        attach(Toy(Net()), [SKIP], seam="trunk")
    gc.collect()


def test_an_attachment_that_is_dropped_at_once_warns() -> None:
    with pytest.warns(UnusedWarning, match=r"never entered.*erta\.enable\(pipe"):
        attach(Toy(Net()), [SKIP])


def test_who_only_asks_whether_it_can_be_attached_detaches() -> None:
    attach(Toy(Net()), [SKIP]).detach()
    gc.collect()


def test_an_attachment_that_was_used_does_not_warn() -> None:
    pipe = Toy(Net())
    with attach(pipe, [SKIP]) as run:
        pipe(0)
    del run
    run = attach(pipe, [SKIP]).__enter__()
    pipe(0)
    run.detach()
    del run
    gc.collect()


# ---------------------------------------------------------------------- another pipeline
def request_scoped(pipe: Any) -> Any:
    """What a server does for every request."""
    found = copy.copy(pipe)
    found.scheduler = copy.deepcopy(pipe.scheduler)
    return found


def test_a_request_scoped_copy_is_driven() -> None:
    pipe = SD.build()
    with attach(pipe, [SKIP]) as run:
        expected = SD.run(pipe)
        with counted(pipe, SD) as made:
            assert torch.equal(SD.run(request_scoped(pipe)), expected)
    assert len(made) == 4
    assert len(run.traces) == 2


def test_only_copies_that_were_made_before_attach_run() -> None:
    pipe = SD.build()
    twin = request_scoped(pipe)
    plain = SD.run(twin)
    message = (
        r"unet \(UNet2DConditionModel\) of StableDiffusionPipeline was called 6 times, by "
        r"StableDiffusionPipeline, .* on the attached DDIMScheduler, .*; attach the pipeline"
    )
    with pytest.warns(UnusedWarning, match=message):
        run = use(pipe, lambda: torch.testing.assert_close(SD.run(twin), plain, rtol=0, atol=0))
    assert "6 calls of unet outside any request" in run.summary()
    assert "attach the pipeline that runs" in run.summary()


def test_only_a_deep_copy_runs() -> None:
    pipe = Toy(Net())
    with pytest.warns(UnusedWarning, match="a deep copy of transformer was made, which is not"):
        run = use(pipe, lambda: copy.deepcopy(pipe)(0))
    assert pipe.transformer.made == 0
    assert "deep copy" in run.summary()


def test_a_loop_by_hand_on_another_scheduler() -> None:
    pipe = Toy(Net())
    with (
        pytest.warns(UnusedWarning, match="6 times, by code of your own"),
        attach(pipe, [SKIP]),
    ):
        last(loop_by_hand(pipe.transformer, flow(), 0))


class Staged(Toy):
    """A prior with a scheduler of its own, then the network that the attached scheduler steps."""

    def __init__(self) -> None:
        super().__init__(Net())
        self.prior, self.prior_scheduler = Net(), flow()

    def __call__(self, seed: int = 0, steps: int = 6, **_: Any) -> Tensor:  # type: ignore[override]
        first = last(loop_by_hand(self.prior, self.prior_scheduler, seed, steps))
        return first + super().__call__(seed, steps)


@pytest.mark.parametrize("networks", [["prior"], ["prior", "transformer"]])
def test_a_network_that_the_scheduler_never_steps(networks: list[str]) -> None:
    pipe = Staged()
    with (
        pytest.warns(UnusedWarning, match=r"prior \(Net\) of Staged was called 6 times") as said,
        attach(pipe, [SKIP], networks=networks) as run,
    ):
        pipe(0)
    assert len(said) == 1
    assert "6 calls of prior outside any request" in run.summary()
    assert pipe.prior.made == 6


def test_what_is_driven_and_shared_with_others_does_not_warn() -> None:
    pipe = Toy(Net())
    free = Toy(pipe.transformer)
    with attach(pipe, [SKIP]) as run:
        pipe(0)
        free(1)
    assert run.summary().endswith("6 calls of transformer outside any request, by Toy")


def test_an_error_within_the_block_speaks_for_itself() -> None:
    pipe = Toy(Net())
    with pytest.raises(ZeroDivisionError):
        use(pipe, lambda: pipe.transformer(drawn(1, 3, 2), torch.tensor(3.0)), lambda: 1 / 0)


def test_without_policies_nothing_was_asked_for() -> None:
    pipe = Toy(Net())
    with attach(pipe, []):
        pipe.transformer(drawn(1, 3, 2), torch.tensor(3.0))


# ------------------------------------------------------------------------- never reused
class Restless(Net):
    """Takes a condition."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        return super().forward(hidden_states, timestep) + encoder_hidden_states.mean()


class Rewriting(Toy):
    """Encodes its prompt anew at every step, so that no call looks like an earlier one."""

    @torch.no_grad()
    def __call__(self, seed: int = 0, steps: int = 6, **_: Any) -> Tensor:  # type: ignore[override]
        self.scheduler.set_timesteps(steps)
        x = drawn(1, 3, 2, seed=seed)
        for index, time in enumerate(self.scheduler.timesteps):
            output = self.transformer(x, time, encoder_hidden_states=drawn(1, 4, 2, seed=index))
            x = self.scheduler.step(output, time, x, return_dict=False)[0]
        return x


def test_a_policy_that_never_found_anything_to_reuse() -> None:
    pipe = Rewriting(Restless())
    with pytest.warns(UnusedWarning, match="no policy could reuse anything in 2 requests of Rewri"):
        run = use(pipe, pipe, pipe)
    assert [trace.reused_calls for trace in run.traces] == [0, 0]
    assert "every call looked like the first of its branch" in run.summary()


class Watches(Policy):
    """Decides nothing."""

    traits = Traits(memory=Needs(evaluations=1))

    @hookimpl(wrapper=True)
    def forward(self) -> Iterator[None]:
        return (yield)


class Never(Policy):
    """Is asked, and answers that every step is to be computed."""

    @hookimpl
    def decide(self, step: Step) -> Reuse | None:
        return Reuse("never") if step.index > 99 else None


@pytest.mark.parametrize("policy", [Watches(), SkipPolicy(every=1)])
def test_policies_that_asked_for_no_reuse_do_not_warn(policy: Policy) -> None:
    pipe = Toy(Net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(pipe, [policy]):
            pipe(0)


@pytest.mark.parametrize("policy", [Never(), EasyCache(threshold=0.0, warmup=1)])
def test_a_rule_that_is_asked_and_never_reuses_warns(policy: Policy) -> None:
    """A threshold that never fires makes a run slower, and looks like one that works."""
    pipe = Toy(Net())
    message = rf"nothing was reused in 1 requests of Toy, although {policy.name} may reuse"
    with pytest.warns(UnusedWarning, match=message), attach(pipe, [policy]) as run:
        pipe(0)
    assert pipe.transformer.made == 6
    assert run.traces[0].reused_calls == 0
    assert "ask for a number of calls" in run.summary()


def test_a_rule_that_reused_in_one_of_its_requests_does_not_warn() -> None:
    pipe = Toy(Net())
    with attach(pipe, [EasyCache(threshold=9.0, warmup=1)]) as run:
        pipe(0, 3)
        pipe(0, 6)
    assert sum(trace.reused_calls for trace in run.traces) > 0


def test_a_request_too_short_to_reuse_anything_does_not_warn() -> None:
    pipe = Toy(Net())
    with attach(pipe, [SKIP]):
        pipe(0, 1)
        pipe(0, 2)


def test_a_request_that_stopped_before_its_first_reuse_does_not_warn() -> None:
    pipe = FAMILIES["wan-euler"].build()

    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 2:
            raise ZeroDivisionError
        return {}

    with attach(pipe, [SkipPolicy(steps=(0, 1, 2))]) as run, pytest.raises(ZeroDivisionError):
        FAMILIES["wan-euler"].run(pipe, callback_on_step_end=stop)
    assert len(run.traces[0].steps) == 3
