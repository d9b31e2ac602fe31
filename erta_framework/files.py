"""Files that are there whole or not at all, and output paths that are checked before a run."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from erta_framework.errors import InputError

LONGEST_NAME = 255
"""Most bytes of a file name on the usual file systems."""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
"""Flags that create a file exclusively, and never write through a link."""


def shorten_name(name: str, most: int = LONGEST_NAME) -> str:
    """A file name cut to a number of bytes of UTF-8, never within a character.

    Example:
        >>> shorten_name("grün", 3)
        'gr'
    """
    return name.encode(errors="replace")[:most].decode(errors="ignore")


def open_new(path: Path) -> int:
    """Create a file that nobody else has and open it for writing; a link is never followed.

    What is left there of a killed process is removed first, a link itself and not its target.

    Raises:
        OSError: It cannot be created, or somebody else creates it at the same time.
    """
    path.unlink(missing_ok=True)
    return os.open(path, CREATE, 0o644)


def write_atomically(path: Path, data: bytes, partial: Path | None = None) -> None:
    """Write a file that is there whole or not at all, and survives a power failure.

    Args:
        path: The file.
        data: Its bytes.
        partial: Where they are written first: a name in the same folder that no other process uses.
            By default one is made up.

    Raises:
        OSError: It could not be written; the partial file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = name_partial(path) if partial is None else partial
    try:
        write_synced(open_new(partial), data)  # the bytes must be on the disk before the name is
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the name itself
    finally:
        os.close(handle)


def create_whole(path: Path, data: bytes) -> bool:
    """Write a file that is not there yet; False if somebody else has, whose file stays.

    With hard links it is there whole at once. Where the file system has none it is created first,
    which only one process can, and then written: a kill between leaves it empty.

    Raises:
        OSError: It could not be written.
    """
    partial = name_partial(path)
    try:
        write_synced(open_new(partial), data)
        try:
            os.link(partial, path)  # unlike a rename, a link never replaces another's file
            return True
        except FileExistsError:
            return False
        except OSError:  # no links here
            write_synced(os.open(path, CREATE, 0o644), data)
            return True
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)


def write_synced(handle: int, data: bytes) -> None:
    """Write an open file to the disk, and close it."""
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def name_partial(path: Path) -> Path:
    """A hidden name beside a file, short enough, that no other process uses."""
    end = f".{os.getpid()}-{secrets.token_hex(4)}.partial"
    return path.with_name("." + shorten_name(path.name, LONGEST_NAME - 1 - len(end)) + end)


@contextlib.contextmanager
def stage_outputs(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`; what is written there replaces older files at the end.

    If the block fails, older files stay as they were and nothing new is left.

    Raises:
        InputError: The folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with stage_outputs(Path(name)) as staged:
        ...         _ = (staged / "trace.jsonl").write_text("{}")
        ...     os.listdir(name)
        ['trace.jsonl']
    """
    require_writable_folder(folder)
    made = make_folders(folder)
    staged = name_partial(folder / "outputs")
    staged.mkdir()
    try:
        yield staged
        for source in sorted(staged.rglob("*")):
            target = folder / source.relative_to(staged)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(source, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        for each in made:  # only where it is still empty
            with contextlib.suppress(OSError):
                each.rmdir()
        raise
    shutil.rmtree(staged)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; those that were not there, innermost first."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


# ------------------------------------------------------------------------------ before a run
def require_writable(path: Path, what: str = "output") -> None:
    """Refuse a file that could not be written at the end of a run.

    Nothing is made: a file is created and removed in the nearest folder that is there.

    Args:
        path: The file.
        what: What it is, for the message, such as the name of the option.

    Raises:
        InputError: It is a folder, a parent is none, or there is no permission or no space.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        probe_folder(path.parent)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission to write it")
    except (OSError, ValueError) as error:
        raise InputError(explain_unwritable(path, what, error)) from error


def require_writable_folder(folder: Path, what: str = "output folder") -> None:
    """Refuse a folder that nothing could be written into at the end of a run.

    Raises:
        InputError: It or a parent is a file, or there is no permission or no space.
    """
    try:
        probe_folder(folder)
    except (OSError, ValueError) as error:
        raise InputError(explain_unwritable(folder, what, error)) from error


def probe_folder(folder: Path) -> None:
    """Create and remove a file in a folder, or in its nearest parent that is there.

    Raises:
        OSError: That is not possible.
    """
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), Path())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
    probe = name_partial(there / "probe")
    os.close(open_new(probe))
    probe.unlink()


def explain_unwritable(path: Path, what: str, error: Exception) -> str:
    """What to say of an output that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return (
        f"cannot write the {what} {path}: {reason}; nothing was sampled: give another path, "
        "or make this one writable"
    )
