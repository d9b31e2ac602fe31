"""References to profiles that lie elsewhere, such as `hf:owner/name@v1`, and the stores behind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from erta_framework.errors import InputError, ProfileError
from erta_framework.files import write_atomically
from erta_framework.plugins import Catalogue, load_with_extra
from erta_framework.text import show_value

HUB = "hf"
"""Scheme of references to the Hugging Face hub."""
EXTRAS = {HUB: "hub"}
"""Extra of erta-framework that brings what a scheme needs; else of the same name."""
DEFAULT_FILE = "profile.safetensors"
PART = r"[A-Za-z0-9][\w.-]*"
"""Never begins with a dot, so that no reference leads out of a folder."""
SCHEME = re.compile(r"([a-z][a-z0-9]+):(?!//)(.+)", re.DOTALL)
REFERENCE = re.compile(
    rf"({PART}/{PART})(?:/((?:{PART}/)*{PART}\.safetensors))?(?:@({PART}(?:/{PART})*))?", re.ASCII
)
FORM = "owner/name, owner/name/FILE.safetensors, or either with @revision"


@dataclass(frozen=True, slots=True)
class ProfileReference:
    """A profile in a store, as `hf:owner/name/FILE@revision` says it.

    Attributes:
        scheme: Which store.
        name: `owner/name` of the repository.
        file: The profile in it.
        revision: Branch, tag or commit; None for the newest.

    Example:
        >>> ProfileReference.parse("hf:owner/name@v1").revision
        'v1'
    """

    scheme: str
    name: str
    file: str = DEFAULT_FILE
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, scheme: str | None = None) -> ProfileReference:
        """Read a reference.

        Args:
            text: With its scheme, or without where `scheme` is given.
            scheme: The scheme of a text that has none.

        Raises:
            InputError: It is none; says how one is written.
        """
        found = SCHEME.fullmatch(text)
        if found is not None:
            scheme, text = found.groups()
        parts = REFERENCE.fullmatch(text)
        if scheme is None or parts is None:
            raise InputError(f"{show_value(text)} is no reference to a profile; write {FORM}")
        name, file, revision = parts.groups()
        return cls(scheme, name, file or DEFAULT_FILE, revision)

    @property
    def is_whole(self) -> bool:
        """Whether it names a repository and no file in it."""
        return self.file == DEFAULT_FILE

    def __str__(self) -> str:
        file = "" if self.is_whole else f"/{self.file}"
        return f"{self.scheme}:{self.name}{file}{f'@{self.revision}' if self.revision else ''}"


@runtime_checkable
class ProfileStore(Protocol):
    """A place that profiles are pulled from and pushed to.

    Offered in the entry-point group `erta_framework.profile_stores`, under the scheme of its
    references: a function without arguments that returns one.
    """

    def fetch(self, reference: ProfileReference) -> Path:
        """The local file of a profile.

        Raises:
            ProfileError: There is none, or it cannot be reached.
        """
        ...

    def publish(self, reference: ProfileReference, files: Mapping[str, bytes]) -> str:
        """Write files into a repository, replacing those of the same names.

        Args:
            reference: The repository.
            files: Contents by name.

        Returns:
            Where they are now, for people.

        Raises:
            ProfileError: They could not be written.
        """
        ...


class FolderStore:
    """A folder of repositories: each is a folder `owner/name` in it.

    Args:
        folder: The folder.

    Example:
        >>> FolderStore("shared").fetch(ProfileReference("hf", "a/b"))  # doctest: +SKIP
        PosixPath('shared/a/b/profile.safetensors')
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def fetch(self, reference: ProfileReference) -> Path:
        path = self._open(reference) / reference.file
        if not path.is_file():
            raise ProfileError(f"no profile at {path}; push one there with `erta profile push`")
        return path

    def publish(self, reference: ProfileReference, files: Mapping[str, bytes]) -> str:
        place = self._open(reference)
        for name, data in files.items():
            write_atomically(place / name, data)
        return str(place)

    def _open(self, reference: ProfileReference) -> Path:
        if reference.revision is not None:
            raise ProfileError(
                f"{self.folder} is a folder, which keeps no revisions, and {reference} asks for "
                f"{reference.revision!r}; leave it out, or use the hub"
            )
        return self.folder / reference.name


def open_profile_store(scheme: str = HUB) -> ProfileStore:
    """The installed store of a scheme.

    Raises:
        InputError: No installed distribution has it.
        MissingExtraError: What ours needs is not installed; names the extra.
        RegistryError: It cannot be imported, or gave something else.
    """
    catalogue = store_catalogue()
    known = catalogue.names()
    if scheme not in known:
        raise InputError(
            f"no store of profiles {show_value(scheme)}; there are: {', '.join(known) or 'none'}"
        )
    opener = load_with_extra(catalogue, scheme, EXTRAS.get(scheme, scheme), "store of profiles")
    store: ProfileStore = opener()
    return store


def store_catalogue() -> Catalogue:
    """The stores of installed distributions, by scheme."""
    return Catalogue("erta_framework.profile_stores", check_opener)


def check_opener(loaded: object) -> str | None:
    """What is wrong with an entry that opens no store."""
    return None if callable(loaded) else f"is {show_value(loaded)}, not a function"


def is_reference(source: str | Path) -> bool:
    """Whether this says a profile in a store and no path of a file.

    A text whose scheme no installed store has is a path.

    Example:
        >>> is_reference("hf:owner/name"), is_reference("runs/hf.safetensors")
        (True, False)
    """
    text = source.as_posix() if isinstance(source, Path) else source
    found = SCHEME.fullmatch(text)
    if found is None or Path(text).exists():
        return False
    return found[1] == HUB or found[1] in store_catalogue().names()


def find_file(source: str | Path) -> Path:
    """The local file of a path or of a reference, fetched if need be.

    Raises:
        InputError: It looks like a reference and is none, or nobody has its scheme.
        ProfileError: It cannot be fetched.
    """
    if not is_reference(source):
        return Path(source)
    reference = ProfileReference.parse(Path(source).as_posix())
    return open_profile_store(reference.scheme).fetch(reference)


def refuse_reference(target: str | Path) -> None:
    """Refuse to write a profile to a store as if it were a file, before a run.

    Raises:
        InputError: It is a reference.
    """
    if is_reference(target):
        raise InputError(
            f"the profile would be written to {Path(target).as_posix()}, which is no file; give "
            "--output FILE, and push that with `erta profile push`"
        )
