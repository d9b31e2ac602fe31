"""Trust comes from files, and no plugin is imported to word an error or to list names."""

from __future__ import annotations

import logging
import signal
import sys

import pytest
from typer.testing import CliRunner

from erta_framework.cli import app
from erta_framework.cli._calibrate import list_calibrated
from erta_framework.compatibility import collect_specimens
from erta_framework.config import build_policies, registered_name
from erta_framework.errors import ConfigError, RegistryError
from erta_framework.plugins import Catalogue, find_default_policy, list_budgeted, models, policies
from erta_framework.plugins import _own as own
from erta_framework.sampling import open_solver_catalogue
from erta_framework.testing import toy_profile

GROUP = "erta_framework.policies"
POLICY = """
from erta_framework import Policy, hookimpl

class Toy(Policy):
    budget: dict | None = None

    def with_calls(self, calls):
        return None

    @hookimpl
    def pre_step(self):
        pass
"""
BOMB = "raise RuntimeError('imported')\n"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs distributions into a folder that is the first on the path; gives the installer."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("ERTA_PLUGINS", raising=False)

    def install(name, module, source=POLICY, group=GROUP, entry="toy", files=None):
        info = folder / f"{name.replace('-', '_')}-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}:Toy\n")
        if files is not None:
            (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        (folder / f"{module}.py").write_text(source)
        return folder

    yield install
    for name, found in list(sys.modules.items()):
        if str(getattr(found, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def erta():
    return lambda *arguments: CliRunner().invoke(app, arguments)


# ------------------------------------------------------------------------------- trust
CLAIMS = {
    "no list of files": None,
    "an empty list": [],
    "a module of its own": ["impostor.py"],
    "the name of our package, which is not there": ["erta_framework/__init__.py"],
    "a path file that is gone": ["impostor.pth"],
}


@pytest.mark.parametrize("files", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("name", ["erta-framework", "Erta_Framework", "erta.framework"])
def test_our_name_alone_gives_no_trust(site, monkeypatch, name, files):
    site(name, "impostor", BOMB, entry="evil", files=files)
    allowed = policies(only=[])
    assert "evil" not in allowed.names()
    assert [entry.name for entry in allowed.hidden()] == ["evil"]
    with pytest.raises(RegistryError, match="only first-party code may be loaded"):
        allowed.load("evil")
    for limit in ("none", "erta-framework"):  # to allow us by name allows nobody of our name
        monkeypatch.setenv("ERTA_PLUGINS", limit)
        assert "evil" not in policies().names()
        assert policies().load("ertacache").__name__ == "ERTACache"
    monkeypatch.delenv("ERTA_PLUGINS")
    (entry,) = [entry for entry in policies().entries() if entry.name == "evil"]
    assert not entry.own  # without a limit it is there, as anybody's
    assert "impostor" not in sys.modules


def test_a_package_of_our_name_elsewhere_is_not_the_one_that_runs(site):
    folder = site(
        "erta-framework", "impostor", entry="evil", files=["erta_framework/__init__.py", "x.pth"]
    )
    (folder / "erta_framework").mkdir()
    (folder / "erta_framework/__init__.py").write_text("")
    (folder / "x.pth").write_text(f"import os\n{folder}\n")
    assert "evil" not in policies(only=[]).names()


@pytest.mark.parametrize("name", ["erta-bench", "Erta_Bench", "erta-policies"])
def test_the_name_of_our_other_distribution_gives_no_trust(site, name):
    site(name, "impostor", BOMB, entry="evil", files=["impostor.py", "erta_bench/__init__.py"])
    assert "evil" not in policies(only=[]).names()
    assert "evil" in policies(only=[name]).names()


def test_an_impostor_does_not_hide_what_it_takes_the_name_of(site):
    expected = policies(only=[]).names()
    site("erta-framework", "impostor", BOMB, entry="evil")
    assert policies(only=[]).names() == expected
    assert {*policies().names()} == {*expected, "evil"}


def test_an_impostor_sets_no_default_policy(site):
    site("erta-framework", "impostor", BOMB, "erta_framework.defaults", "policy")
    assert find_default_policy() == "ertacache"


def test_what_is_installed_from_the_checkout_of_the_running_package_is_ours(site, tmp_path):
    core = own.find_core()
    assert core is not None
    editable = own.HOME.parent in [f.resolve() for f in own.list_editable_folders(core)]
    folder = site("erta-tools", "tools", entry="toy", files=["tools.pth"])
    for place, expected in {own.HOME.parent / "bench": editable, tmp_path: False}.items():
        (folder / "tools.pth").write_text(f"{place}\n")
        assert ("toy" in policies(only=[]).names()) == expected
    (folder / "tools.pth").write_text(f"{own.HOME.parent}\n{tmp_path}\n")
    assert "toy" not in policies(only=[]).names()


def test_the_files_of_a_wheel_show_whose_the_running_package_is(tmp_path, monkeypatch):
    package = tmp_path / "erta_framework"
    package.mkdir()
    (package / "__init__.py").write_text("")
    info = tmp_path / "erta_framework-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-framework\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ntoy = toy:Toy\n")
    monkeypatch.setattr(own, "HOME", package)
    monkeypatch.syspath_prepend(str(tmp_path))
    for files in ("erta_framework/__init__.py,,\n", None):  # a system package has no list
        if files is not None:
            (info / "RECORD").write_text(files)
        assert policies(only=[]).names() == ["toy"]
        (info / "RECORD").unlink(missing_ok=True)


# --------------------------------------------------------------------- broken metadata
BROKEN = {
    "no pair": "[erta_framework.policies]\nnothing here\n",
    "no section": "x = y:Z\n",
    "bytes": b"[erta_framework.policies]\n\xff\xfe = a:b\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_metadata_that_cannot_be_read_breaks_no_list(site, content, caplog):
    expected = policies().names()
    folder = site("erta-sick", "sick")
    points = folder / "erta_sick-9.9.dist-info/entry_points.txt"
    points.write_bytes(content if isinstance(content, bytes) else content.encode())
    with caplog.at_level(logging.WARNING):
        assert {*expected} <= {*policies().names()}
    assert policies().load("ertacache").__name__ == "ERTACache"


def test_a_distribution_without_a_name_breaks_no_list(site):
    folder = site("erta-sick", "sick")
    (folder / "erta_sick-9.9.dist-info/METADATA").write_text("")
    assert "toy" in policies().names()
    assert "toy" not in policies(only=[]).names()


# ----------------------------------------------------------------- what imports raise
RAISES = {
    "SystemExit": "raise SystemExit(3)\n",
    "exit": "import sys\nsys.exit('bye')\n",
    "KeyboardInterrupt": "raise KeyboardInterrupt\n",
    "a function's": "def f():\n    raise KeyboardInterrupt('no')\nf()\n",
    "GeneratorExit": "raise GeneratorExit\n",
    "BaseException": "class Odd(BaseException): pass\nraise Odd('x' * 100000)\n",
    "a message that raises": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd\n"
    ),
}


@pytest.mark.parametrize("source", RAISES.values(), ids=RAISES)
def test_whatever_an_import_raises_is_a_broken_plugin(site, source):
    site("erta-sick", "sick", source)
    with pytest.raises(RegistryError) as error:
        policies().load("toy")
    assert "'toy' of erta-sick 9.9 (sick:Toy) failed to import" in str(error.value)
    assert len(str(error.value)) < 2000


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises, also where the shell started the tests without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_an_import_and_says_which(site):
    site(
        "erta-slow",
        "slow",
        "import signal\nsignal.raise_signal(signal.SIGINT)\nfor _ in range(9): pass\n",
    )
    with pytest.raises(KeyboardInterrupt) as error:
        policies().load("toy")
    assert error.value.__notes__ == [
        "interrupted while importing 'toy' of erta-slow 9.9 (slow:Toy)"
    ]


def test_a_handler_of_the_program_is_ctrl_c_as_well(site):
    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        site(
            "erta-slow",
            "slow",
            "import signal\nsignal.raise_signal(signal.SIGINT)\nfor _ in range(9): pass\n",
        )
        with pytest.raises(KeyboardInterrupt):
            policies().load("toy")
    finally:
        signal.signal(signal.SIGINT, before)


ODD = {
    "a huge repr": (
        "class Meta(type):\n    def __repr__(cls): return 'y' * 10**6\n"
        "class Toy(metaclass=Meta): pass\n"
    ),
    "a repr that raises": "class T:\n    def __repr__(self): 1 / 0\nToy = T()\n",
    "a class that lies": (
        "class T:\n    @property\n    def __class__(self): raise ValueError('no')\nToy = T()\n"
    ),
    "escapes": "class T:\n    def __repr__(self): return '\\x1b[2J\\n'\nToy = T()\n",
    "getattr": (
        "class T:\n    def __getattribute__(self, name): raise RuntimeError(name)\nToy = T()\n"
    ),
}


@pytest.mark.parametrize("group", [GROUP, "erta_framework.solvers", "erta_framework.models"])
@pytest.mark.parametrize("source", ODD.values(), ids=ODD)
def test_an_entry_of_another_type_is_described_and_never_trusted_to_describe_itself(
    site, source, group
):
    if "class Meta" in source and group == "erta_framework.models":
        source += "Toy = [Toy]\n"  # a class can be called, so it would do
    site("erta-odd", "odd", source, group)
    catalogue = {GROUP: policies, "erta_framework.models": models}.get(group, open_solver_catalogue)
    with pytest.raises(RegistryError, match=r"'toy' of erta-odd 9\.9") as error:
        catalogue().load("toy")
    assert len(str(error.value)) < 2000
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------- nothing is imported to say
def test_no_plugin_is_imported_to_word_an_error(site):
    site("erta-bomb", "bomb", f"import pathlib\npathlib.Path(__file__ + '.ran').touch()\n{POLICY}")
    assert "toy" not in list_budgeted()  # it would take one
    assert "toy" not in list_calibrated()
    with pytest.raises(ConfigError, match="takes no budget"):
        build_policies([{"easycache": {"budget": {"calls": 5}}}])
    with pytest.raises(RegistryError, match="did you mean"):
        policies().load("toyy")
    assert "bomb" not in sys.modules
    assert registered_name(policies().load("easycache")) == "easycache"


def test_no_plugin_is_imported_to_find_the_name_of_a_class(site):
    site("erta-same", "same", BOMB)

    class Toy:
        pass

    Toy.__qualname__ = "Toy"
    with pytest.raises(ConfigError, match="is not registered"):
        registered_name(Toy)  # type: ignore[arg-type]
    assert "same" not in sys.modules


def test_listings_import_nothing_that_the_limit_forbids(site, erta, monkeypatch):
    site("erta-bomb", "bomb", BOMB)
    monkeypatch.setenv("ERTA_PLUGINS", "none")
    for arguments in (["policies"], ["policies", "--combine"], ["policies", "--no-hooks"]):
        done = erta(*arguments)
        assert done.exit_code == 0, done.output
        assert "erta-bomb" not in done.output
    assert "bomb" not in sys.modules


@pytest.mark.parametrize("source", [*RAISES.values(), *ODD.values()], ids=[*RAISES, *ODD])
def test_listings_survive_every_plugin_and_name_what_they_import(site, erta, source):
    site("erta-sick", "sick", source)
    done = erta("policies")
    assert done.exit_code == 0, done.output
    assert "importing 'toy' of erta-sick 9.9 (sick:Toy)" in done.output
    assert "failed: 'toy' of erta-sick 9.9" in " ".join(done.output.replace("│", " ").split())
    assert "ertacache" in done.output
    assert "\x1b" not in done.output


TRAPS = {
    "traits": "    @property\n    def traits(self): raise RuntimeError('traits')\n",
    "calibrator": "    profile: str\n    def calibrator(self): raise RuntimeError('calibrator')\n",
    "post_init": "    def __post_init__(self): raise KeyError('made')\n",
    "prepare": "    def prepare(self): raise OSError('prepared')\n",
    "parts": "    def parts(self): raise RuntimeError('parts')\n",
    "hints": "    other: 'NoSuchClass' = None\n",
    "repr": "    def __repr__(self): raise RuntimeError('repr')\n",
}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_a_policy_that_raises_where_it_is_combined_is_absent_with_its_reason(site, trap):
    source = (
        "from erta_framework import Compute, Policy, hookimpl\nclass Toy(Policy):\n"
        f"{trap}    @hookimpl\n    def decide(self): return Compute('x')\n"
    )
    site("erta-trap", "trap", source)

    class Only(Catalogue):
        def entries(self):
            return [entry for entry in super().entries() if entry.name in ("toy", "skip_policy")]

    full = policies()
    found = collect_specimens(toy_profile, catalogue=Only(GROUP, full._check))
    names = {name.partition(" ")[0] for group in found.groups.values() for name in group}
    assert "skip_policy" in names
    if "def parts" not in trap:  # that one is a recipe, which takes no place
        assert ("toy" in names) != ("toy" in found.absent)
