"""`erta.enable(pipe)`: one line, what it chooses, tiers of requests, and how it is taken off."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import erta_framework as erta
from erta_framework.budgets import MeasuredFront
from erta_framework.errors import (
    CapabilityError,
    ConflictError,
    InputError,
    PolicyError,
    ProfileError,
    UnusedWarning,
)
from erta_policies.ertacache import ERTACache, ResidualProfiler, SkipPolicy
from tiny_pipelines import FAMILIES, counted, flow
from tiny_pipelines.toys import Net, Toy

WAN = FAMILIES["wan-euler"]
STEPS = 12


def make_named(pipe: Any, name: str) -> Any:
    """A pipeline that was loaded from this id."""
    pipe.register_to_config(_name_or_path=name)
    return pipe


def wan(**changes: Any) -> Any:
    """A tiny pipeline whose network has the configuration of Wan 2.1 1.3B, but for its widths."""
    pipe = WAN.build()
    config = dict(pipe.transformer.config)
    pipe.transformer = diffusers.WanTransformer3DModel.from_config(
        {**config, "num_layers": 30, "num_attention_heads": 12, "in_channels": 16, **changes}
    ).eval()
    return pipe


# ------------------------------------------------------------------------ one line
def test_one_line_reuses_until_it_is_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = WAN.build()
    plain = WAN.run(pipe, steps=STEPS)
    run = erta.enable(pipe)
    said = capsys.readouterr().err
    with counted(pipe, WAN) as made:
        WAN.run(pipe, steps=STEPS)
    assert len(made) == WAN.calls * STEPS // 2
    assert "no constants ship for WanTransformer3DModel" in said
    assert "every request computes 25 of 50 steps" in said
    erta.disable(pipe)
    assert torch.equal(WAN.run(pipe, steps=STEPS), plain)
    assert len(run.traces) == 1


def test_enabling_nothing_changes_nothing() -> None:
    pipe = WAN.build()
    plain = WAN.run(pipe, steps=STEPS)
    erta.enable(pipe, [], quiet=True)
    assert torch.equal(WAN.run(pipe, steps=STEPS), plain)
    erta.disable(pipe)


def test_it_lives_as_long_as_the_pipeline_and_no_longer() -> None:
    pipe = Toy(Net())
    held = weakref.ref(erta.enable(pipe, "skip_policy", every=2, quiet=True))
    gc.collect()
    pipe(0)
    assert pipe.transformer.made == 4
    assert held() is not None
    del pipe
    gc.collect()
    assert held() is None


def test_twice_and_never() -> None:
    pipe = Toy(Net())
    with pytest.raises(InputError, match="nothing is enabled on this Toy"):
        erta.disable(pipe)
    erta.enable(pipe, "skip_policy", every=2, quiet=True)
    with pytest.raises(ConflictError, match=r"erta\.disable\(pipe\)"):
        erta.enable(pipe, quiet=True)
    pipe(0)
    assert pipe.transformer.made == 4
    erta.disable(pipe)


def test_a_rule_that_never_reused_is_named_when_it_is_disabled() -> None:
    pipe = Toy(Net())
    erta.enable(pipe, "easycache", threshold=0.0, warmup=1, quiet=True)
    pipe(0)
    with pytest.warns(UnusedWarning, match="nothing was reused in 1 requests of Toy"):
        erta.disable(pipe)


# ------------------------------------------------------------------------ what is chosen
def test_published_constants_of_a_recognised_model() -> None:
    run = erta.attach(wan())
    assert run.seam == "trunk"
    assert "wan2.1-t2v-1.3b" in run.explain()
    assert "MagCache" in run.explain()
    run.detach()


def test_a_number_of_calls_is_made_exactly() -> None:
    pipe = WAN.build()
    with erta.attach(pipe, calls=5) as run:
        WAN.run(pipe, steps=STEPS)
    assert len(run.traces[0].computed_steps) == 5


@pytest.mark.parametrize("name", ["black-forest-labs/FLUX.1-schnell", "me/sdxl-lightning-4step"])
def test_models_of_a_few_steps_are_refused(name: str) -> None:
    pipe = make_named(WAN.build(), name)
    with pytest.raises(CapabilityError, match=r"makes only a few steps.*name a policy"):
        erta.enable(pipe)
    with erta.attach(pipe, "skip_policy", every=2):  # named, so wanted
        WAN.run(pipe)


def test_requests_of_a_few_steps_are_refused_and_others_go_on() -> None:
    pipe = WAN.build()
    erta.enable(pipe, quiet=True)
    with pytest.raises(CapabilityError, match="4 steps of WanPipeline are too few"):
        WAN.run(pipe, steps=4)
    WAN.run(pipe, steps=STEPS)
    erta.disable(pipe)


def test_the_steps_that_run_count() -> None:
    family = FAMILIES["sd-img2img"]
    pipe = family.build()
    erta.enable(pipe, quiet=True)
    with pytest.raises(CapabilityError, match="6 steps of StableDiffusionImg2ImgPipeline are too"):
        family.run(pipe, steps=STEPS)
    family.run(pipe, steps=2 * STEPS)
    erta.disable(pipe)


def test_options_without_a_policy_are_refused() -> None:
    with pytest.raises(InputError, match="every belong to no policy"):
        erta.attach(Toy(Net()), every=2)
    with pytest.raises(InputError, match="every belong to no policy that is named"):
        erta.attach(Toy(Net()), [SkipPolicy(every=2)], every=3)
    with pytest.raises(PolicyError, match=r"speedup=2 was asked of easycache.*use one of"):
        erta.attach(Toy(Net()), "easycache", speedup=2)


# ------------------------------------------------------------------------ tiers
@pytest.fixture(scope="module")
def measured() -> erta.Profile:
    """A profile of the tiny pipeline with plans of 4, 6 and 8 calls that were measured."""
    pipe = WAN.build()
    with erta.attach(pipe, [ResidualProfiler()]) as run:
        WAN.run(pipe, steps=STEPS)
    front = MeasuredFront(
        steps=((0, 4, 8, 11), (0, 2, 4, 6, 8, 11), (0, 1, 2, 3, 5, 7, 9, 11)),
        refined=((0, 4, 8, 11), (0, 2, 4, 6, 8, 11), (0, 1, 2, 3, 5, 7, 9, 11)),
        predicted=(0.3, 0.2, 0.1),
        psnr=(30.0, 36.0, 44.0),
        psnr_std=(0.0, 0.0, 0.0),
        refined_psnr=(30.0, 36.0, 44.0),
        seconds=(1.0, 2.0, 3.0, 4.0),
        batch=1,
        device="cpu",
        planner="skip_policy",
        policies="",
        spent=0,
        unit="skip_policy",
    )
    return front.added_to(run.profile())


def test_a_tier_is_a_measured_plan_of_one_request(measured: erta.Profile) -> None:
    pipe = WAN.build()
    with erta.attach(pipe, [ERTACache(profile=measured, calls=8)]) as run:
        with run.using(speedup=2) as tier:
            WAN.run(pipe, steps=STEPS)
        WAN.run(pipe, steps=STEPS)
    assert tier.psnr == 36.0
    assert [len(trace.computed_steps) for trace in run.traces] == [6, 8]


@pytest.mark.parametrize("budget", [{"speedup": 6}, {"calls": 10}, {"psnr": 60}])
def test_a_tier_out_of_reach_is_an_error(measured: erta.Profile, budget: dict[str, Any]) -> None:
    with erta.attach(WAN.build(), [ERTACache(profile=measured, calls=8)]) as run:
        with pytest.raises(ProfileError), run.using(**budget):
            pytest.fail("it was entered")
        WAN.run(run._driver.parts.pipe, steps=STEPS)  # type: ignore[attr-defined]


def test_a_request_that_computes_more_than_its_tier_says_so(
    measured: erta.Profile, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = WAN.build()
    embeds = WAN.inputs(1)["prompt_embeds"]

    def change(_: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Other conditioning from step 2 on, which begins a new history."""
        return {"prompt_embeds": embeds + 1} if index == 1 else {}

    with (
        erta.attach(pipe, [ERTACache(profile=measured, calls=8, linearizer=False)]) as run,
        run.using(calls=4),
    ):
        WAN.run(
            pipe,
            steps=STEPS,
            callback_on_step_end=change,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
    assert "5 steps were computed, more than its tier has" in run.summary()
    assert "calls=4: 4 calls, measured 30.0 dB" in caplog.text


def test_a_tier_that_was_not_measured_must_be_wanted() -> None:
    pipe = WAN.build()
    with erta.attach(pipe, "taylorseer") as run:
        with pytest.raises(ProfileError, match="a tier is a plan that was measured"):
            run.using(calls=5).__enter__()
        with run.using(calls=5, measured=False):
            WAN.run(pipe, steps=STEPS)
    assert len(run.traces[0].computed_steps) == 5


def test_a_tier_belongs_to_its_thread() -> None:
    pipe = WAN.build()
    with erta.attach(pipe, "taylorseer", calls=6) as run:

        def request() -> None:
            WAN.run(pipe, steps=STEPS)

        with run.using(calls=4, measured=False):
            other = threading.Thread(target=request)
            other.start()
            other.join()
            request()
    assert [len(trace.computed_steps) for trace in run.traces] == [6, 4]


# ------------------------------------------------------------------------ what is shown
def test_it_shows_itself_in_a_line_and_reports_on_a_page(tmp_path: Path) -> None:
    pipe = Toy(Net(), flow())
    run = erta.attach(pipe, "skip_policy", every=2)
    assert repr(run) == "Attachment(Toy, skip_policy, never entered, 0 requests)"
    with run:
        pipe(0)
        assert "on, 1 requests" in repr(run)
    assert "step 1" in run._repr_html_()
    page = run.report(tmp_path / "sub" / "x.html").read_text(encoding="utf-8")
    assert "as planned (schedule)" in page
    assert page.count('class="reused"') == run.traces[0].reused_calls
