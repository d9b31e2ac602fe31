"""Profiles by reference: how references are read, folders of repositories, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erta_framework import Profile
from erta_framework.calibration import (
    FolderStore,
    ProfileReference,
    is_reference,
    open_profile_store,
)
from erta_framework.errors import InputError, ProfileError
from erta_framework.optional_dependencies import MissingExtraError


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("hf:a/b", ("hf", "a/b", "profile.safetensors", None)),
        ("hf:a/b@v1.2", ("hf", "a/b", "profile.safetensors", "v1.2")),
        ("hf:a/b/wan/p-50.safetensors", ("hf", "a/b", "wan/p-50.safetensors", None)),
        ("hf:a/b/p.safetensors@refs/pr/1", ("hf", "a/b", "p.safetensors", "refs/pr/1")),
    ],
)
def test_a_reference_comes_back_as_it_was_written(text: str, read: tuple[str | None, ...]) -> None:
    found = ProfileReference.parse(text)
    assert (found.scheme, found.name, found.file, found.revision) == read
    assert str(found) == text
    assert is_reference(text)
    assert is_reference(Path(text))
    assert ProfileReference.parse(text.removeprefix("hf:"), "hf") == found


@pytest.mark.parametrize(
    "text",
    [
        *("hf:a", "hf:a/b/c", "hf:a/b/c.bin", "hf:../b", "hf:a/..", "hf:a/b/../x.safetensors"),
        *("hf:a/b@", "hf:a/b@../x", "hf:/a/b", "hf:a/b/.x.safetensors", "hf:a/b\n", "hf:a b/c"),
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is no reference to a profile; write owner/name"):
        Profile.load(text)


@pytest.mark.parametrize("text", ["a/b", "C:/x", "run:1/p.safetensors", "https://h/a/b", "hf"])
def test_other_paths_stay_paths(text: str) -> None:
    assert not is_reference(text)
    with pytest.raises(ProfileError, match="no profile at"):
        Profile.load(text)


def test_a_file_of_such_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = Profile("toy", {"num_steps": "4"}, {"sums": torch.ones(4)}, samples=2)
    with pytest.raises(InputError, match="which is no file; give --output FILE"):
        profile.save("hf:a/b")
    Path("hf:a").mkdir()
    profile.save("own").rename("hf:a/b")
    assert Profile.load("hf:a/b").digest == profile.digest


def test_a_folder_is_a_store_without_revisions(tmp_path: Path) -> None:
    store, reference = FolderStore(tmp_path / "shared"), ProfileReference("hf", "a/b")
    with pytest.raises(ProfileError, match="push one there"):
        store.fetch(reference)
    place = store.publish(reference, {"profile.safetensors": b"1", "README.md": b"2"})
    assert store.fetch(reference).read_bytes() == b"1"
    assert (Path(place) / "README.md").read_bytes() == b"2"
    with pytest.raises(ProfileError, match="keeps no revisions, and hf:a/b@v1 asks for 'v1'"):
        store.fetch(ProfileReference.parse("hf:a/b@v1"))


def test_an_unknown_scheme_names_those_that_there_are() -> None:
    with pytest.raises(InputError, match="no store of profiles 'ftp'; there are: hf"):
        open_profile_store("ftp")


def test_a_missing_client_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erta_framework.optional_dependencies.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"erta-framework\[hub\]"):
        Profile.load("hf:a/b")
