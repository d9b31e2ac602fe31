"""Files that are there whole or not at all, and outputs that are tried before a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from erta_framework.errors import InputError
from erta_framework.files import (
    create_whole,
    name_partial,
    open_new,
    require_writable,
    require_writable_folder,
    shorten_name,
    stage_outputs,
    write_atomically,
)


@pytest.mark.parametrize(
    ("name", "most", "expected"),
    [
        ("abc", 5, "abc"),
        ("abcdef", 5, "abcde"),
        ("äöü", 5, "äö"),
        ("字字", 5, "字"),
        ("😀😀", 5, "😀"),
        ("字", 2, ""),
        ("a\ud800b", 9, "a?b"),
    ],
)
def test_names_are_cut_between_characters(name: str, most: int, expected: str) -> None:
    assert shorten_name(name, most) == expected
    assert len(shorten_name(name, most).encode()) <= most


def test_a_partial_name_fits_and_is_hidden() -> None:
    for name in ("a", "x" * 255, "字" * 85):
        partial = name_partial(Path("folder", name))
        assert partial.parent == Path("folder")
        assert len(os.fsencode(partial.name)) <= 255
        assert partial.name.startswith(".")
        assert partial.name.endswith(".partial")
    assert name_partial(Path("a")) != name_partial(Path("a"))


def test_a_new_file_follows_no_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    os.close(open_new(link))
    assert (victim.read_text(), link.is_symlink(), link.read_text()) == ("precious", False, "")


def test_a_link_that_is_planted_at_the_last_moment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(FileExistsError):
        open_new(link)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("links", [True, False])
def test_a_whole_file_is_created_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    assert create_whole(tmp_path / "a", b"one")
    assert not create_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomically(tmp_path / "a", b"one")
    monkeypatch.setattr(os, call, refused)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a", b"two")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


# ----------------------------------------------------------------------------------- staging
def test_staged_outputs_replace_older_ones_together(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("old")
    (tmp_path / "gifs").mkdir()
    (tmp_path / "gifs/kept").write_text("kept")
    with stage_outputs(tmp_path) as staged:
        (staged / "trace").write_text("new")
        (staged / "gifs").mkdir()
        (staged / "gifs/one").write_text("one")
        assert (tmp_path / "trace").read_text() == "old"
    assert (tmp_path / "trace").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["gifs", "trace"]
    assert sorted(os.listdir(tmp_path / "gifs")) == ["kept", "one"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_older_outputs(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "trace").write_text("old")

    def fail(folder: Path) -> None:
        with stage_outputs(folder) as staged:
            (staged / "trace").write_text("half")
            raise error

    for folder in (tmp_path, tmp_path / "new" / "deeper"):
        with pytest.raises(error):
            fail(folder)
    assert os.listdir(tmp_path) == ["trace"]
    assert (tmp_path / "trace").read_text() == "old"


# ---------------------------------------------------------------------------- before the run
def test_what_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    require_writable(tmp_path / "a")
    require_writable(tmp_path / "deep" / "er" / "a")
    require_writable_folder(tmp_path / "deep")
    (tmp_path / "there").write_text("kept")
    require_writable(tmp_path / "there")
    assert os.listdir(tmp_path) == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for path, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "a", "file is no folder"),
        (tmp_path / "file" / "b" / "a", "file is no folder"),
        (tmp_path / "dangling" / "a", "dangling is no folder"),
        (tmp_path / ("字" * 90), "name too long"),
        (Path("/proc/a"), "cannot write the trace"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            require_writable(path, "trace")
        assert "nothing was sampled: give another path" in str(caught.value)
    with pytest.raises(InputError, match=r"cannot write the output folder .*file is no folder"):
        require_writable_folder(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_or_locked_disk_is_seen_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InputError, match=os.strerror(number)):
        require_writable(tmp_path / "a")
