"""`attach` of the core finds its driver by name and hands over what it was given."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import erta_framework as erta
from erta_framework.attach import load_driver
from erta_framework.errors import CapabilityError, RegistryError
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.plugins import _registry as registry

DRIVER = """
def follow(pipe, policies, **options):
    return pipe, policies, options

NUMBER = 3
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with one driver that works, one that is a number and one that fails."""
    info = tmp_path / "erta_others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: erta-others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[erta_framework.drivers]\nothers = erta_others:follow\nnumber = erta_others:NUMBER\n"
        "absent = erta_others_absent:follow\n"
    )
    (tmp_path / "erta_others.py").write_text(DRIVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(registry.LIMIT_VARIABLE, raising=False)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("erta_others", None)


def test_the_catalogue_holds_our_drivers() -> None:
    found = {entry.name: entry.distribution for entry in registry.drivers(only=[]).entries()}
    assert found == dict.fromkeys(("diffusers", "diffusers-run", "language"), "erta-framework")


def test_a_driver_gets_what_attach_was_given(third_party: None) -> None:
    given = erta.attach("pipe", "ertacache", driver="others", calls=3)
    assert given == ("pipe", "ertacache", {"calls": 3})


def test_an_unknown_driver_names_those_there_are(third_party: None) -> None:
    with pytest.raises(RegistryError, match=r"'nobodys' in erta_framework\.drivers.*others"):
        erta.attach(object(), "ertacache", driver="nobodys")


def test_a_driver_that_is_no_function_is_refused(third_party: None) -> None:
    with pytest.raises(RegistryError, match=r"'number' of erta-others 1\.0 .* not a function"):
        load_driver("number")


def test_a_driver_of_others_that_fails_does_not_name_our_extra(third_party: None) -> None:
    with pytest.raises(RegistryError, match=r"'absent' of erta-others .* failed to import") as e:
        load_driver("absent")
    assert "erta-framework[" not in str(e.value)


def test_the_limit_on_third_parties_holds_for_drivers(
    third_party: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registry.LIMIT_VARIABLE, "none")
    with pytest.raises(RegistryError, match=registry.LIMIT_VARIABLE):
        load_driver("others")


@pytest.mark.parametrize("name", ["diffusers", "diffusers-run"])
def test_a_missing_library_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("erta_integrations.diffusers", "erta_integrations.diffusers._loading"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "erta-framework\[diffusers\]"'):
        load_driver(name)


def test_what_is_no_pipeline_is_refused_by_its_driver() -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(CapabilityError, match="object has no scheduler"):
        erta.attach(object(), "skip_policy", every=2)
