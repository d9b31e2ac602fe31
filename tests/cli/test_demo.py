from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from erta_framework import Profile
from erta_framework.cli import PolicyOptions
from erta_framework.console import make_console
from erta_integrations.shapes_wan.demo._methods import list_methods
from erta_integrations.shapes_wan.demo._subject import choose_subject

METHODS = ["Full run", "Fewer steps", "Fewer steps, AB2", "Uniform reuse", "ERTACache"]
DEMO = ("demo", "--model", "toy-video", "--steps", "8", "--calls", "4", "--prompts", "2")


@pytest.fixture
def shipped(erta, profile, monkeypatch):
    """The toy model as a class that ships a profile."""
    import erta_toy_video

    path = Path(profile).resolve()
    toy = erta_toy_video.ToyVideo
    monkeypatch.setattr(toy, "shipped_profile", lambda _: path, raising=False)
    return toy


def test_demo_measures_and_writes_everything(erta, shipped, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    done = erta(*DEMO, "-o", "out", "--recalibrate", "--open")
    assert done.exit_code == 0, done.output
    assert opened == [Path("out/report.html").resolve().as_uri()]
    assert "calibrated now on 2 prompts" in done.output
    assert Profile.load("out/profile.safetensors").fingerprint["num_steps"] == "8"
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == METHODS
    assert [row["calls"] for row in rows] == [16, 8, 8, 8, 8]
    assert [row["computed"] for row in rows] == [8, 4, 4, 4, 4]
    assert rows[0]["psnr_mean"] is None
    assert all(row["psnr_mean"] > 0 and row["ssim_mean"] <= 1 for row in rows[1:])
    assert all(name in done.output for name in METHODS)
    assert len(list(Path("out/gifs").iterdir())) == 10
    with Image.open("out/comparison.gif") as gif:
        assert gif.n_frames == 4
    with Image.open("out/contact-sheet.png") as sheet, Image.open("out/schedule.png") as plot:
        assert sheet.width > 5 * (3 * 72)
        assert plot.width == 1400


def test_report_is_self_contained_and_says_what_ran(erta, shipped):
    done = erta(*DEMO, "-o", "out")
    assert done.exit_code == 0, done.output
    assert "using the profile shipped with the model, calibrated on 2 prompts" in done.output
    assert not Path("out/profile.safetensors").exists()
    page = Path("out/report.html").read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', page)
    assert len(sources) == 2 * 5 + 2
    assert all(source.startswith("data:image/") for source in sources)
    assert page.count('<span class="tag computed">') == 4
    assert page.count('<span class="tag reused">') == 4
    assert "prefers-color-scheme: dark" in page
    for text in ("show one", "show number two", "FlowEuler(shift=3.0", "CFG(scale=3.0", "torch"):
        assert text in page
    assert "SamplingLoop" in page  # the toy offers no pipeline


@pytest.mark.parametrize(
    ("asked", "name", "calls"),
    [
        ({"policy": ["sometimes"]}, "sometimes", 4),  # counted, since no plan says it
        ({"policy": ["{skip_policy: {every: 3}}"]}, "skip_policy every=3", 4),
        ({"profile": True, "speedup": 4.0}, "ERTACache", 2),
        ({"policy": ["ertacache"], "speedup": 2.0}, "ertacache speedup=2.0", 4),
    ],
)
def test_the_demo_shows_the_policies_and_budget_of_its_options(
    erta, profile, tmp_path, asked, name, calls
):
    from erta_toy_video import ToyVideo

    if "profile" in asked:
        asked = {**asked, "profile": Path(profile)}
    given = (PolicyOptions(**asked), ToyVideo(), ["calibrate one", "calibrate two"], 8)
    subject = choose_subject(*given, tmp_path, make_console(), False, "cpu")
    assert subject.name == name
    assert subject.count_calls(ToyVideo(), "one", 0, 8, "cpu") == calls
    methods = list_methods(subject.name, subject.policies, calls, 8, pipeline=False)
    assert [(method.name, method.steps) for method in methods[1:]] == [
        ("Fewer steps", calls),
        ("Fewer steps, AB2", calls),
        ("Uniform reuse", 8),
        (name, 8),
    ]


@pytest.mark.slow
def test_demo_runs_through_the_pipeline_that_a_model_offers(erta, monkeypatch):
    """shapes-wan through an unmodified WanPipeline: its calls, its own calibration, its report."""
    diffusers = pytest.importorskip("diffusers")
    made = diffusers.WanPipeline.__call__
    requests: list[tuple[str, int]] = []

    def called(pipe, **arguments):
        requests.append((type(pipe.scheduler).__name__, arguments["num_inference_steps"]))
        return made(pipe, **arguments)

    monkeypatch.setattr(diffusers.WanPipeline, "__call__", called)
    done = erta("demo", "--steps", "4", "--calls", "3", "--prompts", "2", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "calibrated now on 8 prompts" in done.output  # the shipped profile has 50 steps
    names = ["Full run", "Fewer steps", "Fewer steps, UniPC", "Uniform reuse", "ERTACache"]
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == names
    computed = rows[-1]["computed"]
    assert 2 <= computed <= 3
    assert [row["calls"] for row in rows] == [8, *[2 * computed] * 4]
    assert all(row["psnr_mean"] > 10 for row in rows[1:])
    euler, unipc = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
    turn = [(euler, 4), (euler, computed), (unipc, computed), (euler, 4), (euler, 4)]
    assert requests == [(euler, 4), *turn * 3]  # calibration; a warm-up and two rounds
    fingerprint = Profile.load("out/profile.safetensors").fingerprint
    assert fingerprint["solver"].startswith(euler)
    page = Path("out/report.html").read_text()
    for text in ("WanPipeline of diffusers", "unmodified", euler, "guidance_scale 3"):
        assert text in page


@pytest.mark.slow
def test_the_demo_uses_the_shipped_profile_of_the_pipeline(erta):
    done = erta("demo", "--prompts", "1", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "using the profile shipped with the model, calibrated on 24 prompts" in done.output
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["calls"] for row in rows] == [100, 50, 50, 50, 50]
    assert rows[-1]["psnr_mean"] > max(row["psnr_mean"] for row in rows[1:-1])


def test_a_shipped_profile_of_another_network_is_refused(erta, shipped, monkeypatch):
    monkeypatch.setattr(shipped, "fingerprint", lambda _: {"network": "Other"})
    done = erta(*DEMO, "-o", "out")
    assert done.exit_code == 1
    assert "model.network: profile 'ToyVideo' / run 'Other'" in done.output
    assert "erta demo --recalibrate" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", "9"), "brings 1 to 3 held-out prompts"),
        (("--calls", "9"), "--calls 9 exceeds the 8 steps"),
        (("--speedup", "2"), "got --calls and --speedup; give one of them"),
        (("--device", "gpu"), "--device gpu: accelerator 'gpu' is not available"),
        (("--model", "words"), "--calls 4: no effect on the model 'words'"),
        (("--model", "toyvideo"), "did you mean 'toy-video'?"),
    ],
)
def test_demo_errors(erta, arguments, message):
    done = erta(*DEMO, *arguments, "-o", "out")
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())
