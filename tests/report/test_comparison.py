from __future__ import annotations

import math

import jinja2
import pytest
import torch

from erta_framework import NoGuidance, Sampler
from erta_framework.budgets import forecast
from erta_framework.config import build_policies
from erta_framework.environment import describe_machine, use_fastest_threads
from erta_framework.errors import InputError, PolicyError
from erta_framework.metrics import psnr, relative_l1
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.report import Method, TrajectoryRecorder, compare, render_page
from erta_framework.report._page import Page, render_comparison


class Toy:
    latent_shape = (3, 2, 12, 12)

    def fingerprint(self):
        return {"network": "Toy"}

    def encode(self, prompts):
        return torch.tensor([[len(prompt) / 10.0] for prompt in prompts])

    def __call__(self, x, timestep, embeds):
        time = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        return x - 0.3 * torch.tanh(x) * time + embeds.reshape(-1, 1, 1, 1, 1) * (1 - time)


PROMPTS = ["one", "three", "and two"]


def methods() -> list[Method]:
    every = build_policies([{"skip_policy": {"every": 2}}])
    return [
        Method(name="full", detail="all", steps=6),
        Method(name="same", detail="all again", steps=6),
        Method(name="few", detail="fewer", steps=3),
        Method(name="every other", detail="reuse", steps=6, policies=every, subject=True),
    ]


def test_comparison_measures_what_the_sampler_gives():
    result = compare(Toy(), methods(), PROMPTS, seed=11, rounds=2)
    every = methods()[-1].policies
    full = Sampler(num_steps=6).sample(Toy(), PROMPTS, seed=11).samples
    reused = Sampler(every, num_steps=6).sample(Toy(), PROMPTS, seed=11).samples
    assert torch.equal(result.samples[0], full)
    assert torch.equal(result.samples[3], reused)
    assert [row.calls for row in result.rows] == [12, 12, 6, 8]  # two branches; the last computes
    assert [row.computed for row in result.rows] == [6, 6, 3, 4]
    assert result.rows[0].psnr == ()
    assert result.rows[1].psnr == (math.inf,) * 3
    assert list(result.rows[3].psnr) == psnr(reused, full).tolist()
    assert result.rows[0].speedup == 1.0
    assert result.rows[1].as_record()["psnr_mean"] is None  # JSON knows no infinity
    assert result.subject == 3


def test_distances_are_of_methods_on_the_same_schedule():
    result = compare(Toy(), methods(), PROMPTS, seed=11, recorded=2)
    assert list(result.distances) == ["same", "every other"]
    assert result.distances["same"] == (0.0,) * 6
    distance = result.distances["every other"]
    assert distance[0] == 0.0  # step 0 computes
    assert all(value > 0 for value in distance[1:])
    few = (result.samples[3][:2], result.samples[0][:2])
    assert distance[-1] == pytest.approx(relative_l1(*few).mean().item(), rel=1e-6)


def test_one_prompt_can_be_compared():
    result = compare(Toy(), methods(), ["one"], rounds=2)
    assert len(result.samples[0]) == 1
    assert result.recorded == 1


@pytest.mark.parametrize("chosen", [[], [methods()[0], methods()[0]]])
def test_methods_need_different_names(chosen):
    with pytest.raises(InputError, match="different names"):
        compare(Toy(), chosen, PROMPTS)


def test_recorder_changes_nothing_and_keeps_every_step():
    plain = Sampler(num_steps=5).sample(Toy(), PROMPTS)
    recorded = Sampler([TrajectoryRecorder()], num_steps=5).sample(Toy(), PROMPTS)
    assert torch.equal(plain.samples, recorded.samples)
    latents = recorded.emitted[0].statistics["latents"]
    assert latents.shape == (5, 3, 3, 2, 12, 12)
    assert torch.equal(latents[-1], plain.samples)


def test_forecast_asks_inside_recipes():
    (policy,) = build_policies([{"skip_policy": {"steps": [2, 4]}}])
    plan = forecast([policy], 5)
    assert (plan.policy, plan.computed, plan.sources) == ("skip_policy", (0, 2, 4), (0, 0, 2, 2, 4))
    assert (plan.calls, plan.speedup) == (3, 5 / 3)


def test_forecast_needs_a_planner():
    with pytest.raises(PolicyError, match=r"plans ahead \(trajectory_recorder\)"):
        forecast([TrajectoryRecorder()], 5)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    calls = []
    with use_fastest_threads(lambda: calls.append(torch.get_num_threads())) as chosen:
        assert torch.get_num_threads() == chosen
    assert torch.get_num_threads() == before
    assert set(calls) == {1, before}


def test_the_machine_is_a_flat_record():
    found = describe_machine(torch.device("cpu"))
    assert list(found) == ["system", "processor", "cores", "torch_threads", "accelerator"]
    assert found["accelerator"] is None
    assert found["torch_threads"] == torch.get_num_threads()


def test_a_factory_of_samplers_takes_no_guidance_beside_it():
    with pytest.raises(InputError, match="set them in make_sampler"):
        compare(
            Toy(),
            methods(),
            PROMPTS,
            guidance=NoGuidance(),
            make_sampler=lambda method, policies, callbacks, batch_size: Sampler(policies),
        )


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        render_page("base.html", {}, wanted_by="a test")


def test_pages_name_a_missing_extra(monkeypatch):
    monkeypatch.setattr("erta_framework.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"a test needs jinja2.*erta-framework\[report\]"):
        render_page("base.html", {"title": "x"}, wanted_by="a test")


def test_page_escapes_what_users_wrote(tmp_path):
    picture = tmp_path / "x.gif"
    picture.write_bytes(b"GIF")
    result = compare(Toy(), methods()[:2], ["<script>alert(1)</script> \x1b[31m\u202e"])
    page = Page(
        title="a < b",
        setting={"model": "<b>", "na<i>me\x9b": "\x00 \ud800"},
        environment={},
        explanation="x -> y",
        videos=[[picture], [picture]],
        plot=picture,
        plot_dark=picture,
        plot_note='"quoted"',
    )
    html = render_comparison(result, page)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<title>a &lt; b</title>" in html
    assert "<dd>&lt;b&gt;</dd>" in html
    assert "x -&gt; y" in html
    assert "\\x1b[31m\\u202e" in html
    assert "<dt>na&lt;i&gt;me\\x9b</dt><dd>\\x00 \\ud800</dd>" in html
    assert not set("\x1b\x9b\x00\u202e") & set(html)
    html.encode()
