"""Which installed distributions are ours: told by their files, never by their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackagePath, distributions, entry_points
from pathlib import Path

from erta_framework.text import show_error

CORE = "erta-framework"
"""The distribution whose extras bring what its drivers and launchers import."""
HOME = Path(__file__).resolve().parents[1]
"""The package that is running."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one distribution offers, known from metadata alone.

    Attributes:
        distribution: Its name.
        version: Its version.
        own: Whether it is ours.
        points: Its entry points of one group.
    """

    distribution: str
    version: str
    own: bool
    points: tuple[EntryPoint, ...]


def normalize_name(name: str) -> str:
    """A distribution name in its comparable form."""
    return re.sub(r"[-_.]+", "-", name.strip().lower())


def list_offers(group: str) -> Iterator[Offer]:
    """What every installed distribution offers in a group; nothing is imported.

    Ours come first. Where several of one name are installed, the first on the path counts, and
    one of ours always does. A distribution whose metadata cannot be read offers nothing.
    """
    core = find_core()
    if core is not None and (points := select_points(core, group)):
        yield make_offer(core, True, points)
    for found, points in list_points(group):
        if not owns_running_code(found):  # that one is above
            yield make_offer(found, is_from_checkout(found, core), points)


def make_offer(found: Distribution, own: bool, points: tuple[EntryPoint, ...]) -> Offer:
    """What a distribution offers, with its name and version."""
    name, version = read_header(found, "Name"), read_header(found, "Version")
    return Offer(name or "unknown distribution", version or "?", own, points)


def read_header(found: Distribution, key: str) -> str:
    """One line of a distribution's metadata; parsing all of it takes most of the time of a list."""
    text = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    line = re.search(rf"^{key}:(.*)$", text.partition("\n\n")[0], re.MULTILINE)
    return line[1].strip() if line else ""


def list_points(group: str) -> Iterator[tuple[Distribution, tuple[EntryPoint, ...]]]:
    """The entry points of a group by distribution, one distribution of each name."""
    try:
        points = list(entry_points(group=group))
    except Exception:  # one file that cannot be read fails for all
        seen: set[str] = set()
        for found in distributions():
            name = normalize_name(read_header(found, "Name"))
            if name not in seen and (held := select_points(found, group)):
                yield found, held
            seen.add(name)
        return
    by_owner: dict[int, list[EntryPoint]] = {}
    for point in points:
        by_owner.setdefault(id(point.dist), []).append(point)
    for held_by in by_owner.values():
        if held_by[0].dist is not None:
            yield held_by[0].dist, tuple(held_by)


def select_points(found: Distribution, group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a distribution in a group."""
    try:
        return tuple(point for point in found.entry_points if point.group == group)
    except Exception as error:  # whatever a file of somebody else may hold
        name = read_header(found, "Name")
        log.warning("the entry points of %s cannot be read: %s", name, show_error(error))
        return ()


def find_core() -> Distribution | None:
    """The installed distribution that the running package belongs to; None without one."""
    return next((found for found in distributions(name=CORE) if owns_running_code(found)), None)


def owns_running_code(found: Distribution) -> bool:
    """Whether a distribution called `erta-framework` installed the package that is running."""
    if normalize_name(read_header(found, "Name")) != CORE:
        return False
    inside = f"{HOME.name}/__init__.py"
    files = list_files(found)
    folders = list_editable_folders(found)
    # a system that packages it keeps a list of files of its own
    if not files or any(file.as_posix() == inside for file in files):
        folders = [Path(str(found.locate_file(""))), *folders]
    return any(is_same(folder / inside, HOME / "__init__.py") for folder in folders)


def is_from_checkout(found: Distribution, core: Distribution | None) -> bool:
    """Whether a distribution is installed from the checkout that the running package lies in."""
    if core is None:
        return False
    checkout = HOME.parent
    if checkout not in [folder.resolve() for folder in list_editable_folders(core)]:
        return False
    folders = list_editable_folders(found)
    return bool(folders) and all(folder.resolve().is_relative_to(checkout) for folder in folders)


def list_editable_folders(found: Distribution) -> list[Path]:
    """The folders that an editable install of a distribution puts on the path."""
    folders: list[Path] = []
    for file in list_files(found):
        if file.suffix != ".pth" or len(file.parts) > 1:
            continue
        try:
            lines = Path(str(found.locate_file(file))).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):  # it lists a file that is gone, or no text
            continue
        folders += [Path(line) for line in lines if line and not line.startswith("import")]
    return folders


def list_files(found: Distribution) -> Sequence[PackagePath]:
    """The files that a distribution says it installed; none where it does not say."""
    try:
        return found.files or ()
    except Exception:  # whatever a file of somebody else may hold
        return ()


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file."""
    return one.is_file() and one.samefile(other)
