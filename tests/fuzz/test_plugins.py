"""Hostile plugins: whatever they raise, are called or show, lists go on and errors are short."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from erta_framework.cli import app
from erta_framework.config import build_run
from erta_framework.errors import ErtaError, RegistryError
from erta_framework.masked import open_decoder_catalogue
from erta_framework.plugins import benches, commands, drivers, launchers, models, policies
from erta_framework.sampling import open_guidance_catalogue, open_solver_catalogue

CATALOGUES = {
    "policies": policies,
    "solvers": open_solver_catalogue,
    "guidance": open_guidance_catalogue,
    "decoders": open_decoder_catalogue,
    "models": models,
    "drivers": drivers,
    "launchers": launchers,
    "commands": commands,
    "benches": benches,
}
RAISED = [
    "SystemExit(1)", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException('b')",
    "MemoryError", "RecursionError", "StopIteration", "Exception('x' * 10**6)", "OSError(2, 'no')",
    "UnicodeDecodeError('utf-8', b'x', 0, 1, '\\x1b[31m')", "ExceptionGroup('g', [ValueError()])",
]  # fmt: skip
MEMBERS = [
    "__getattr__", "__getattribute__", "__repr__", "__str__", "__eq__", "__hash__", "__bool__",
    "__len__", "__iter__", "__instancecheck__", "__subclasscheck__", "__call__", "__format__",
]  # fmt: skip
HOOKS = ["traits", "name", "parts", "calibrator", "prepare", "decide", "plan", "with_calls"]
NAMES = [
    "toy",
    "[bold]",
    "[/]",
    "a b",
    "\x1b[31mred",
    "ertacache",
    "x" * 300,
    "sample",
    "\u202ex",
    "%s",
]


def make_module(rng: random.Random) -> str:
    """The source of a module that offers `Toy`, in some way that nobody wants."""
    error = rng.choice(RAISED)
    kind = rng.randrange(6)
    if kind == 0:
        return f"raise {error}\n"
    if kind == 1:
        return rng.choice(["def broken(:\n", "\x00", "import no_such_module\n", "", "Toy = Toy\n"])
    if kind == 2:
        members = "".join(
            f"    def {name}(self, *a, **k): raise {error}\n" for name in rng.sample(MEMBERS, 3)
        )
        return f"class T:\n{members}Toy = T()\n"
    if kind == 3:
        members = "".join(
            f"    def {name}(cls, *a, **k): raise {error}\n" for name in rng.sample(MEMBERS, 3)
        )
        return f"class M(type):\n{members}class Toy(metaclass=M): pass\n"
    if kind == 4:
        shown = rng.choice(["'y' * 10**6", "'\\x1b[2J' * 99", "'a\\nb'", "3", "None"])
        return f"class T:\n    def __repr__(self): return {shown}\nToy = T()\n"
    members = "".join(
        rng.choice(
            [
                f"    @property\n    def {name}(self): raise {error}\n",
                f"    def {name}(self, *a, **k): raise {error}\n",
                f"    {name} = 3\n",
            ]
        )
        for name in rng.sample(HOOKS, 2)
    )
    document = rng.choice(["[bold]doc[/bold]", "\\x1b[2J", "x" * 10_000, ""])
    return f'from erta_framework import Policy\nclass Toy(Policy):\n    """{document}"""\n{members}'


class Site:
    """A folder on the path with one distribution that is made anew for each example."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def install(self, rng: random.Random) -> tuple[str, str]:
        """A hostile distribution: the name of its group and of its entry."""
        self.forget()
        self.count += 1
        module = f"erta_hostile_{self.count}"
        info = self.folder / f"hostile-{self.count}.dist-info"
        info.mkdir()
        owner = rng.choice(["hostile", "Erta_Framework", "erta-bench", "[red]x", "\x1b[31mx", ""])
        header = f"Metadata-Version: 2.1\nName: {owner}\nVersion: {rng.choice(['1', '[b]', ''])}\n"
        (info / "METADATA").write_text(rng.choice([header, header, header, "", "\n\n"]))
        group, entry = rng.choice(list(CATALOGUES)), rng.choice(NAMES)
        target = rng.choice([f"{module}:Toy"] * 8 + [module, "not a target", f"{module}:Toy.x.y"])
        lines = [f"[erta_framework.{group}]", f"{entry} = {target}"]
        if rng.random() < 0.1:
            lines.append(rng.choice(["no pair", "[", "= x", "x ="]))
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        (self.folder / f"{module}.py").write_text(make_module(rng))
        importlib.invalidate_caches()
        return group, entry

    def forget(self) -> None:
        """Remove the last one, and what it imported."""
        for path in self.folder.iterdir():
            if path.is_dir():
                for file in path.iterdir():
                    file.unlink()
                path.rmdir()
        for name in [name for name in sys.modules if name.startswith("erta_hostile")]:
            del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ERTA_PLUGINS", raising=False)
    made = Site(tmp_path)
    yield made
    made.forget()


def is_short_text(said: str) -> bool:
    return 0 < len(said) < 5000 and not set("\x1b\u202e") & set(said)


def try_loading(rng: random.Random, site: Site, count: int) -> None:
    for _ in range(count):
        group, entry = site.install(rng)
        own = policies(only=())
        assert own.load("skip_policy").__name__ == "SkipPolicy"
        assert not [found for found in own.entries() if not found.own]
        try:
            CATALOGUES[group]().load(entry)
        except RegistryError as error:
            said = str(error)
        else:
            continue  # it offers what the group wants
        assert is_short_text(said), said[:500]


def try_building(rng: random.Random, site: Site, count: int) -> None:
    keys = {"policies": lambda name: [name], "solvers": str, "guidance": str}
    for _ in range(count):
        group, entry = site.install(rng)
        make: Callable[[str], object] = keys.get(group, lambda name: [name])
        key = {"solvers": "solver"}.get(group, group) if group in keys else "policies"
        try:
            build_run({key: make(entry)})
        except ErtaError as error:
            said = str(error)
        else:
            continue
        assert is_short_text(said), said[:500]
        assert build_run({"policies": ["easycache"]}, only=()).policies


def test_loading_a_hostile_plugin_is_an_error_of_ours(rng, examples, site):
    try_loading(rng, site, examples(40))


def test_a_configuration_that_names_one_is_refused(rng, examples, site):
    try_building(rng, site, examples(40))


@pytest.mark.slow
def test_many_hostile_plugins(rng, examples, site):
    try_loading(rng, site, examples(400))
    try_building(rng, site, examples(400))


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["policies"]])
def test_lists_go_on(rng, examples, site, arguments):
    for _ in range(examples(3)):
        site.install(rng)
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert not set("\x1b\u202e") & set(done.output)
        ours = {"--help": "sample", "bench": "overhead"}.get(arguments[0], "easycache")
        assert ours in done.output
