"""What a new user tries first: `--version`, `-h`, completion, the module, and typing errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import erta_framework
from erta_framework.cli._group import show_warning
from erta_framework.errors import UnusedWarning
from erta_framework.optional_dependencies import find_extra

CHECK = """
import sys
from erta_framework.__main__ import main
try:
    main(["--version"])
except SystemExit:
    pass
print(sorted({"torch", "numpy", "omegaconf", "erta_framework.plugins"} & set(sys.modules)))
"""


def test_the_version_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [f"erta-framework {erta_framework.__version__}", "[]"]


def test_every_name_of_the_package_is_found_when_it_is_asked_for() -> None:
    for name in erta_framework.__all__:
        found = getattr(erta_framework, name)
        assert getattr(found, "__name__", name) == name
    assert set(erta_framework.__all__) <= set(dir(erta_framework))
    assert callable(erta_framework.attach)
    with pytest.raises(AttributeError, match="no attribute 'Smapler'"):
        erta_framework.Smapler  # noqa: B018 - reading it is the test


def test_a_package_does_not_hide_the_function_of_its_name() -> None:
    from erta_framework import attach

    assert attach.__name__ == "attach"
    assert "pipe" in attach.__annotations__ or callable(attach)


@pytest.mark.parametrize("command", ["sample", "profile show", "bench overhead", "schedule"])
def test_the_short_name_of_help_works_everywhere(erta, command) -> None:
    done = erta(*command.split(), "-h")
    assert done.exit_code == 0, done.output
    assert f"Usage: erta {command}" in done.output
    assert "--install-completion" not in done.output  # an option of `erta` alone


@pytest.mark.parametrize(
    ("words", "expected"), [("erta com", "compare"), ("erta explain --spe", "--speedup")]
)
def test_shells_complete_commands_and_options(words, expected, monkeypatch, capsys) -> None:
    monkeypatch.setenv("_ERTA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        erta_framework.cli.main([])
    assert capsys.readouterr().out.split() == [expected]
    assert os.environ["COMP_WORDS"] == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "--profile", "no.st", "--calls", "4"), "no profile at no.st"),
        (("sample", "toy.safetensors"), "give it as --profile toy.safetensors"),
        (("sample", "--prompts", "no.txt"), "there is no file no.txt with prompts"),
        (("sample", "--policy", "skip_polcy", "-p", "x"), "did you mean 'skip_policy'"),
        (("explain", "--policy", "mine.yaml"), "give a configuration without --policy"),
        (("explain", "--policy", "{fora: 3}"), "{name: {option: value}}"),
        (("explain", "--policy", "sometimes", "--calls", "4"), "none of these policies takes a"),
        (("explain", "--policy", "fora", "--profile", "toy.st"), "reads a profile (fora)"),
        (("explain", "--calls", "4", "--speedup", "2"), "give one of them"),
        (("explain", "--calls", "4", "--quality", "high"), "got --calls and --quality"),
        (("explain", "--quality", "hihg"), "no quality 'hihg'; did you mean 'high'?"),
        (("plan", "--quality", "high"), "go with --profile or --policy"),
        (("explain", "--device", "gpu"), "it must be auto, cpu, cuda, mps"),
    ],
)
def test_what_goes_wrong_first_is_one_message(erta, arguments, message) -> None:
    Path("toy.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    Path("toy.st").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    done = erta(*arguments)
    assert done.exit_code in (1, 2), done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_a_policy_a_budget_and_a_device_need_no_file(erta, profile) -> None:
    given = ("--profile", profile, "--calls", "4", "--model", "toy-video", "--device", "cpu")
    done = erta("explain", *given, "steps=8")
    assert done.exit_code == 0, done.output
    assert "every request computes 4 of 8 steps" in done.output
    Path("prompts.txt").write_text("one\ntwo\n")
    run = ("sample", *given[4:], "--steps", "8", "--prompts", "prompts.txt", "--no-gifs")
    done = erta(*run, "--policy", "{skip_policy: {every: 4}}")
    assert done.exit_code == 0, done.output
    assert "2 samples, 6 network calls" in done.output


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("PIL.Image", "report"),
        ("matplotlib", "report"),
        ("diffusers.schedulers", "diffusers"),
        ("lightning", "fabric"),
        ("torchao", "quantization"),
        ("nothing_of_ours", None),
    ],
)
def test_a_missing_library_belongs_to_the_smallest_extra(module, extra) -> None:
    assert find_extra(module) == extra
    assert find_extra("diffusers", prefer="demo") == "demo"


@pytest.mark.parametrize(
    ("arguments", "extra"), [(("sample", "-p", "x"), "diffusers"), (("demo",), "demo")]
)
def test_what_misses_a_library_names_the_pip_line(erta, monkeypatch, arguments, extra) -> None:
    def load(point):
        raise ModuleNotFoundError("No module named 'diffusers.x'", name="diffusers.x")

    monkeypatch.setattr("importlib.metadata.EntryPoint.load", load)
    done = erta(*arguments)
    assert done.exit_code == 1
    told = " ".join(done.output.split())
    assert f'needs diffusers, which is not installed; pip install "erta-framework[{extra}]"' in told


def test_a_library_that_is_missed_later_is_one_message_as_well(erta, monkeypatch) -> None:
    def show(*_):
        raise ModuleNotFoundError("No module named 'PIL'", name="PIL")

    monkeypatch.setattr("erta_framework.cli._explain.explain_tokens", show)
    done = erta("explain", "decoder=random", "model=words")
    assert done.exit_code == 1
    assert (
        'error: this needs PIL, which is not installed; pip install "erta-framework[report]"'
        in (done.output)
    )


@pytest.mark.parametrize("budget", [("--speedup", "2"), ("--calls", "6"), ("--quality", "high")])
def test_a_budget_alone_chooses_policies_and_says_which(erta, budget) -> None:
    done = erta("explain", "steps=12", "--model", "toy-video", *budget)
    assert done.exit_code == 0, done.output
    assert "chosen: " in done.output
    assert "no constants ship for Sampler" in done.output
    assert "every request computes 6 of 12 steps" in done.output


def test_a_budget_alone_is_for_the_steps_of_the_run_and_refuses_few(erta) -> None:
    run = ("sample", "--speedup", "2", "model=toy-video", "-p", "one", "--no-gifs", "-o", "out")
    done = erta(*run, "--steps", "12")
    assert "1 samples, 12 network calls" in done.output
    done = erta(*run, "--steps", "4")
    assert done.exit_code == 1
    assert "on the command line: --policy NAME" in done.output


def test_a_policy_of_its_own_options_is_planned_without_a_profile(erta, profile) -> None:
    done = erta("plan", "steps=9", "--policy", "{skip_policy: {every: 4}}", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)[0]["computed"] == [0, 4, 8]
    asked = ("plan", "--profile", profile, "--policy", "{planned_schedule: {cost: forecast}}")
    found = json.loads(erta(*asked, "--speedup", "2", "--json").output)
    assert [plan["calls"] for plan in found] == [4]


def test_a_warning_of_ours_is_one_line_and_others_stay_as_they_are(capsys) -> None:
    seen: list[object] = []
    show_warning(lambda *given: seen.append(given), UnusedWarning("nothing ran"), UnusedWarning)
    assert capsys.readouterr().err == "warning: nothing ran\n"
    other = DeprecationWarning("old")
    show_warning(lambda *given: seen.append(given), other, DeprecationWarning, "file.py", 3)
    assert seen == [(other, DeprecationWarning, "file.py", 3)]
