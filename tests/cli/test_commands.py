from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from erta_framework import Profile, __version__
from erta_framework.cli._policies import list_hooks

COMMANDS = (
    "sample",
    "compare",
    "calibrate",
    "plan",
    "explain",
    "inspect",
    "policies",
    "profile",
    "schedule",
    "bench",
    "demo",
)
TWO = ("--calls", "2", "--calls", "3")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("profile", "merge")])
def test_help_everywhere(erta, command):
    done = erta(*command, "--help")
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output


def test_every_command_is_listed(erta):
    listed = re.findall(r"^│ (\w+)  ", erta("--help").output, re.MULTILINE)
    assert tuple(listed) == COMMANDS


def test_version(erta):
    assert erta("--version").output == f"erta-framework {__version__}\n"


def test_policies_lists_distribution_hooks_and_failures(erta):
    done = erta("policies")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    (sometimes,) = [line for line in lines if "sometimes" in line]
    assert "erta-toy 1.2.3" in sometimes
    assert "decide" in sometimes
    (broken,) = [line for line in lines if "broken" in line]
    assert "failed" in broken
    (skip,) = [line for line in lines if "skip_policy" in line]
    assert "on_session_start, decide" in skip


def test_policies_without_hooks_imports_nothing(erta):
    done = erta("policies", "--no-hooks")
    assert done.exit_code == 0
    assert "broken" in done.output
    assert "failed" not in done.output
    assert "erta_toy_video" not in sys.modules


def test_policies_can_be_limited(erta, monkeypatch):
    monkeypatch.setenv("ERTA_PLUGINS", "none")
    done = erta("policies", "--no-hooks")
    assert "skip_policy" in done.output
    assert "sometimes" not in done.output


def test_hooks_of_a_recipe():
    from erta_policies.ertacache import ERTACache, TimestepAdjuster

    assert list_hooks(ERTACache) == ("recipe",)
    assert list_hooks(TimestepAdjuster) == ("on_session_start", "adjust_interval")


def test_explain_names_who_answers(erta):
    done = erta("explain", "model=toy-video", "steps=9", "policies=[{skip_policy: {every: 3}}]")
    assert done.exit_code == 0, done.output
    assert "schedule  9 steps, sigma 1 to 0" in done.output
    assert "skip_policy -> core" in done.output


def test_inspect_refuses_a_model_that_does_not_say_its_places(erta):
    done = erta("inspect", "model=toy-video")
    assert done.exit_code == 2
    assert "toy-video" in done.output
    assert "inspect_places" in done.output


def test_explain_refuses_what_the_solver_cannot_do(erta):
    done = erta(
        "explain", "solver=flow_ab2", "policies=[{timestep_adjuster: {phi: [0.5, 0.5]}}]", "steps=2"
    )
    assert done.exit_code == 1
    assert "requires first_order" in done.output


def test_plan_of_a_config(erta):
    done = erta("plan", "steps=9", "policies=[{skip_policy: {every: 4}}]", "--json")
    assert done.exit_code == 0, done.output
    (plan,) = json.loads(done.output)
    assert plan["computed"] == [0, 4, 8]
    assert plan["sources"] == [0, 0, 0, 0, 4, 4, 4, 4, 8]
    assert (plan["steps"], plan["calls"], plan["speedup"]) == (9, 3, 3.0)


def test_plan_counts_the_steps_of_own_sigmas(erta):
    done = erta("plan", "sigmas=[1.0, 0.5, 0.25]", "policies=[{skip_policy: {every: 2}}]", "--json")
    assert json.loads(done.output)[0]["steps"] == 3


def test_plan_exports_its_schedule(erta, tmp_path):
    path, options = tmp_path / "mask.json", "policies=[{skip_policy: {every: 4}}]"
    done = erta("plan", "steps=9", options, "--export", "cache-dit", "-o", str(path), "--json")
    assert json.loads(done.stdout)[0]["computed"] == [0, 4, 8]
    found = json.loads(path.read_text())
    assert found["DBCacheConfig"]["steps_computation_mask"] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    erta("plan", "steps=9", options, "--export", "magcache", "-o", str(path))
    assert json.loads(path.read_text())["MagCacheConfig"]["max_skip_steps"] == 3


def test_plan_of_a_profile_compares_budgets(erta, profile):
    done = erta("plan", "--profile", profile, "--calls", "4", "--calls", "2", "--json")
    assert done.exit_code == 0, done.output
    four, two = json.loads(done.output)
    assert (four["steps"], four["calls"], four["speedup"]) == (8, 4, 2.0)
    assert two["computed"] == [0, 7]
    assert two["threshold"] > four["threshold"] > 0
    shown = erta("plan", "--profile", profile, "--calls", "4")
    assert "2.00x" in shown.output
    assert "ertacache: 4 of 8 steps computed" in shown.output
    computed = "".join("█" if k in four["computed"] else "░" for k in range(8))
    assert computed in shown.output


def test_plan_takes_every_kind_of_budget_and_the_settings_of_a_planner(erta, profile):
    asked = ("plan", "--profile", profile, "--policy", "planned_schedule", "--json")
    both = erta(*asked, "--budget", "speedup=2", "--budget", "calls=4", "--option", "cost=forecast")
    first, second = json.loads(both.output)
    assert first["computed"] == second["computed"]
    plain, other = (
        json.loads(erta(*asked, "--calls", "4", "--option", option).output)[0]["facts"]["predicted"]
        for option in ("gamma=1.0", "cost=grouping")
    )
    assert plain != other


def test_plan_shows_the_front_of_a_profile(erta, profile):
    done = erta("plan", "--profile", profile, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    assert [row["calls"] for row in rows] == sorted({row["calls"] for row in rows})
    errors = [row["predicted"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert rows[-1]["computed"] == list(range(8))
    shown = erta("plan", "--profile", profile, "--policy", "planned_schedule", "--plot", "f.png")
    assert "2.00x" in shown.output
    assert Path("f.png").stat().st_size > 10_000


def test_plan_measures_into_the_profile(erta, profile):
    asked = ("--profile", profile, "--calls", "3", "--calls", "5", "--prompts", "2")
    again = ("plan", "model=toy-video", "steps=8", *asked, "--refine", "2", "-o", "m.st")
    done = erta(*again, "--target", "exact")
    assert done.exit_code == 0, done.output
    assert "and 12 full runs for the exact solution" in done.output
    assert "PSNR to the exact solution" in " ".join(done.output.split())
    assert "it is one of full, exact" in erta(*again, "--target", "exactly").output
    alone = erta("plan", "--profile", profile, "--front", "--target", "exact")
    assert "says what --measure and --refine measure to" in " ".join(alone.output.split())
    done = erta(*again)
    assert done.exit_code == 0, done.output
    assert "at most 32 network calls a branch" in done.output  # 8 + 3 * (3 + 5)
    rows = json.loads(erta("plan", "--profile", "m.st", "--json").output)
    found = {row["calls"]: row for row in rows if row["psnr"] is not None}
    assert set(found) == {3, 5}
    assert all(row["refined_psnr"] >= row["psnr"] for row in found.values())
    worst = min(row["psnr"] for row in found.values())
    options = f"policies=[{{ertacache: {{profile: m.st, budget: {{psnr: {worst:.3f}}}}}}}]"
    (plan,) = json.loads(erta("plan", "steps=8", options, "--json").output)
    assert plan["calls"] in found
    before = json.loads(erta("plan", "--profile", profile, "--json").output)
    assert all(row["psnr"] is None for row in before)


def test_explain_says_what_a_request_costs(erta, profile):
    options = f"policies=[{{ertacache: {{profile: {profile}}}}}]"
    budget = "policies.0.ertacache.budget.calls=4"
    done = erta("explain", "model=toy-video", "steps=8", options, budget)
    assert "every request computes 4 of 8 steps" in done.output


def test_plan_does_what_sampling_does(erta, profile):
    options = f"policies=[{{ertacache: {{profile: {profile}, calls: 3}}}}]"
    planned = json.loads(erta("plan", "steps=8", options, "--json").output)
    erta("sample", "model=toy-video", "steps=8", options, "-p", "x", "-o", "out", "--no-gifs")
    lines = [json.loads(line) for line in Path("out/trace.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    ran = [line["index"] for line in steps if line["calls"][0]["computed"]]
    assert ran == planned[0]["computed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan",), "plans ahead (no policies)"),
        (("plan", "policies=[sometimes]"), "plans ahead (sometimes)"),
        (("plan", "--calls", "3"), "go with --profile or --policy"),
        (("plan", "--front", "--budget", "calls=3"), "go with --profile or --policy"),
        (("plan", "--option", "gamma=2"), "go with --profile or --policy"),
        (
            ("plan", "--profile", "toy.st", "--budget", "psnr"),
            "--budget psnr: it must be KEY=VALUE",
        ),
        (("plan", "--profile", "toy.st", "--option", "gamma=["), "gamma=[: it cannot be read"),
        (("plan", "--profile", "toy.st", "--budget", "pnsr=3"), "did you mean 'psnr'?"),
        (("plan", "--profile", "toy-video"), "the model 'toy-video' brings no profile"),
        (("plan", "--export", "cache-dit"), "--output <file> go together"),
        (
            ("plan", "policies=[fora]", "--export", "magcash", "-o", "x.json"),
            "no export to 'magcash'",
        ),
        (
            ("plan", "--profile", "toy.st", "--export", "magcache", "-o", "x"),
            "asks for the front of all budgets",
        ),
        (
            ("plan", "--profile", "toy.st", *TWO, "--export", "magcache", "-o", "x"),
            "--export writes one schedule, 2 were planned",
        ),
        (("plan", "--profile", "toy.st", "--front", "--threshold", "1"), "a front has all budgets"),
        (("plan", "--measure", "policies=[{skip_policy: {every: 2}}]"), "give --profile FILE"),
        (("plan", "--front", "policies=[sometimes]"), "takes a budget (sometimes)"),
        (("plan", "--profile", "toy.st", "--calls", "1"), "1 network calls cannot be scheduled"),
        (("plan", "--profile", "no.st", "--calls", "3"), "no profile at no.st"),
    ],
)
def test_plan_errors(erta, profile, arguments, message):
    done = erta(*arguments)
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_profile_show(erta, profile):
    shown = erta("profile", "show", profile)
    assert shown.exit_code == 0, shown.output
    assert "2 x 8 x 8 x 3" in shown.output
    facts = json.loads(erta("profile", "show", profile, "--json").output)
    loaded = Profile.load(profile)
    assert facts["digest"] == loaded.digest
    assert facts["fingerprint"] == dict(loaded.fingerprint)
    assert facts["statistics"]["ratio"] == [2, 8, 8]


def test_profile_show_of_a_truncated_file(erta, profile):
    Path("cut.st").write_bytes(Path(profile).read_bytes()[:200])
    done = erta("profile", "show", "cut.st")
    assert done.exit_code == 1
    assert "cut.st is not a readable safetensors file" in done.output


def test_profile_merge_adds(erta, profile):
    other = ("calibrate", "model=toy-video", "steps=8", "seed=9", "-p", "more", "-o", "other.st")
    assert erta(*other, "--policy", "skip_policy").exit_code == 0
    assert erta("profile", "merge", profile, "other.st", "-o", "all.st").exit_code == 0
    a, b, merged = (Profile.load(name) for name in (profile, "other.st", "all.st"))
    assert merged.samples == 3
    assert merged.statistics["ratio"].equal(a.statistics["ratio"] + b.statistics["ratio"])
    again = erta("profile", "merge", profile, "other.st", "-o", "all.st")
    assert again.exit_code == 2
    assert "all.st exists" in again.output


def test_profile_merge_refuses_other_runs(erta, profile):
    erta("calibrate", "model=toy-video", "steps=6", "--policy", "ertacache", "-o", "six.st")
    done = erta("profile", "merge", profile, "six.st", "-o", "all.st")
    assert done.exit_code == 1
    assert "num_steps: first '8' / number 2 '6'" in done.output
    assert not Path("all.st").exists()
    one = erta("profile", "merge", profile, "-o", "all.st")
    assert one.exit_code == 2
    assert "two or more profiles, got 1" in one.output


def test_bench_passes_its_arguments_on(erta):
    done = erta("bench", "overhead", "--help")
    assert done.exit_code == 0, done.output
    assert "erta bench overhead" in done.output
    assert erta("bench", "no-such-benchmark").exit_code == 2
