"""What is promised, the tests that hold each promise, and how many there are.

The counts are read off the test files while the site is built: test functions, before they are
repeated for each parameter, and the examples that a fuzz test tries in each of them.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tables.markdown import render_table

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Promise:
    """One line of the page.

    Attributes:
        text: What is promised.
        how: How it is tested.
        files: Patterns of test files, below `tests/`.
    """

    text: str
    how: str
    files: tuple[str, ...]


D = "integrations/diffusers/"
PROMISES = (
    Promise(
        "With nothing skipped, a pipeline returns the same bits as without us",
        "every pipeline of the matrix, both seams, also in half precision, compiled and offloaded",
        (f"{D}test_families.py", f"{D}test_trunk.py", f"{D}test_offload.py", f"{D}test_static.py"),
    ),
    Promise(
        "A network call belongs to the request of the pipeline that makes it, or to none",
        "threads in turns, copies, siblings, pipelines within callbacks, generators, tasks",
        (f"{D}test_whose_call.py", f"{D}test_lifecycle.py"),
    ),
    Promise(
        "Requests, branches and shapes never mix, whatever came before",
        "random sequences of verbs and of requests, each against the same request alone",
        (
            "fuzz/test_*_sequences.py",
            f"{D}test_branches.py",
            f"{D}test_shapes.py",
            f"{D}test_interrupted.py",
            "core/test_session.py",
            "core/test_history.py",
        ),
    ),
    Promise(
        "What was attached and did nothing says so",
        "attachments never entered, copies, other schedulers, rules that never fire",
        (f"{D}test_never_driven.py",),
    ),
    Promise(
        "What changes inside a network starts a new history; what reads more of it is refused",
        "adapters, processors, FreeU, prompts written in place; stores, gradients, hooks",
        (
            f"{D}test_network_state.py",
            f"{D}test_observers.py",
            f"{D}test_lora.py",
            f"{D}test_controlnet.py",
        ),
    ),
    Promise(
        "A reused output that is not finite is an error that names the step",
        "half precision overflow, in pipelines and in the own loop",
        (f"{D}test_nonfinite.py",),
    ),
    Promise(
        "Plans, profiles and counts are about the steps that run",
        "early ends, late starts, interrupts, budgets from every number of steps",
        (
            f"{D}test_early_end.py",
            "policies/planning/test_budgets.py",
            "core/test_step_schedule.py",
        ),
    ),
    Promise(
        "On tokens, nothing reused gives the same text, and a batch what its samples give alone",
        "every kind of model, edited and masked tokens, padding, guidance, interrupts",
        ("masked/test_*.py", "integrations/language/test_*.py", "policies/dkvcache/test_rules.py"),
    ),
    Promise(
        "A file is sound or refused, and nothing in it is executed",
        "flipped bits, truncation, edited headers, edited and signed again",
        ("fuzz/test_profiles.py", "core/test_profile.py"),
    ),
    Promise(
        "A configuration is a plan or a refusal; it reads no environment and imports no code",
        "random values, files and overrides",
        ("fuzz/test_configurations.py", "core/test_config*.py"),
    ),
    Promise(
        "No plugin is imported unasked, and a broken one breaks no list",
        "plugins that exit, lie, hang, print control sequences, or call themselves ours",
        (
            "fuzz/test_plugins.py",
            "core/test_own.py",
            "core/test_registry.py",
            "core/test_entries.py",
        ),
    ),
    Promise(
        "What is printed is text: markup and control sequences are shown, not obeyed",
        "names, prompts and messages in the terminal and in pages",
        ("cli/test_terminal.py",),
    ),
    Promise(
        "A job that is killed loses no sample, and resumes to the same bytes",
        "workers killed at every kind of moment, damaged samples, stray files, full disks",
        ("integrations/fabric/test_jobs_*.py", "cli/test_outputs.py", "core/test_files.py"),
    ),
    Promise(
        "Ranks that share a sample agree, or say which rank wants what",
        "processes with other plans, with rules that are not static, killed in between",
        ("integrations/fabric/agreement/test_*.py",),
    ),
)


def find_files(promise: Promise) -> list[Path]:
    """The test files of a promise.

    Raises:
        LookupError: A pattern matches no file.
    """
    tests = ROOT / "tests"
    known = {path.relative_to(tests).as_posix(): path for path in tests.rglob("test_*.py")}
    found: dict[str, Path] = {}
    for pattern in promise.files:
        names = fnmatch.filter(known, pattern)
        if not names:
            raise LookupError(f"no test file matches {pattern} of the promise {promise.text!r}")
        found.update({name: known[name] for name in names})
    return list(found.values())


def count_tests(path: Path) -> tuple[int, int, int]:
    """Test functions of a file, and the examples of its fuzz tests: quick ones, slow ones."""
    tests, quick, slow = 0, 0, 0
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        tests += 1
        examples = sum(find_examples(node)) if path.parent.name == "fuzz" else 0
        if any("slow" in ast.unparse(decorator) for decorator in node.decorator_list):
            slow += examples
        else:
            quick += examples
    return tests, quick, slow


def find_examples(test: ast.FunctionDef) -> Iterator[int]:
    """The numbers of `examples(300)` in a test."""
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "examples":
            (number,) = node.args
            yield ast.literal_eval(number)


def render_promises() -> str:
    """A line for each promise."""
    rows = []
    for promise in PROMISES:
        counts = [count_tests(path) for path in find_files(promise)]
        tests, quick, slow = (sum(column) for column in zip(*counts, strict=True))
        fuzzed = f"{quick:,} / {slow:,}" if quick else "-"
        rows.append([promise.text, promise.how, str(tests), fuzzed])
    return render_table(["Promise", "Tried with", "Tests", "Examples, quick / slow"], rows)
