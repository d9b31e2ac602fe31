"""`erta profile push`, `pull` and `gallery`: profiles that travel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erta_framework.calibration import (
    HUB,
    FolderStore,
    Profile,
    ProfileReference,
    ProfileStore,
    is_reference,
    open_profile_store,
)
from erta_framework.cli._options import Force, unset
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.files import require_writable, write_atomically
from erta_framework.text import escape_line

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="owner/name of the repository, with /FILE.safetensors for another file than "
        "profile.safetensors, and @REVISION for a branch, a tag or a commit.",
        show_default=False,
    ),
]


def push(
    file: Annotated[Path, typer.Argument(help="A profile.", show_default=False)],
    name: Name,
    to: Annotated[
        Path | None, unset("Put it into this folder of repositories, not on the hub.")
    ] = None,
) -> None:
    """Put a profile into a repository of the Hugging Face hub, with a card that describes it.

    The repository is made if it is not there. The card says what the profile was calibrated for,
    where it comes from and what was measured; look at it before you publish.
    """
    from erta_framework.report import write_profile_card

    if is_reference(file):
        raise InputError(f"{file.as_posix()} is no file; fetch it first with `erta profile pull`")
    reference, profile = ProfileReference.parse(name, HUB), Profile.load(file)
    used = None if to is not None else str(reference)
    card = write_profile_card(profile, reference.name, used)
    place = open_store(to, reference).publish(
        reference, {reference.file: file.read_bytes(), name_card(reference): card.encode("utf-8")}
    )
    make_console().print(escape_line(f"{profile!r} and its card are at {place}"), soft_wrap=True)


def pull(
    name: Name,
    output: Annotated[
        Path | None,
        unset("File to write; by default NAME.safetensors, or FILE.", "--output", "-o"),
    ] = None,
    source: Annotated[
        Path | None, unset("Take it from this folder of repositories, not from the hub.", "--from")
    ] = None,
    force: Force = False,
) -> None:
    """Fetch a profile from the Hugging Face hub, check it, and write it as a file.

    A configuration may name it without this: profile: hf:owner/name@REVISION.
    """
    reference = ProfileReference.parse(name, HUB)
    target = output or Path(name_file(reference))
    if target.exists() and not force:
        raise InputError(f"{target} exists; give --force to replace it, or another --output")
    require_writable(target, "profile")
    path = open_store(source, reference).fetch(reference)
    profile = Profile.load(path)
    write_atomically(target, path.read_bytes())
    make_console().print(escape_line(f"{profile!r} written to {target}"), soft_wrap=True)


def gallery(
    folder: Annotated[
        Path, typer.Argument(help="Profiles, at any depth below.", show_default=False)
    ],
    output: Annotated[Path, unset("Page to write: .html or .md.", "--output", "-o")],
    force: Force = False,
) -> None:
    """Write one page about all profiles of a folder: what each is for, and what was measured."""
    from erta_framework.report import find_profiles, write_gallery

    if output.exists() and not force:
        raise InputError(f"{output} exists; give --force to replace it")
    require_writable(output, "gallery")
    found, left = find_profiles(folder)
    for reason in left:
        typer.echo(f"left out: {escape_line(reason)}", err=True)
    write_gallery(found, output, title=f"Profiles in {folder.resolve().name}")
    make_console().print(escape_line(f"{len(found)} profiles in {output}"), soft_wrap=True)


def add_travel(group: typer.Typer) -> None:
    """Add these commands to `erta profile`."""
    for command in (push, pull, gallery):
        group.command()(command)


def open_store(folder: Path | None, reference: ProfileReference) -> ProfileStore:
    """A folder, or the store of the reference."""
    return open_profile_store(reference.scheme) if folder is None else FolderStore(folder)


def name_file(reference: ProfileReference) -> str:
    """What a fetched profile is called here."""
    named = reference.is_whole
    return f"{reference.name.partition('/')[2]}.safetensors" if named else Path(reference.file).name


def name_card(reference: ProfileReference) -> str:
    """The card of a profile: that of the repository, or one beside a file of its own name."""
    return "README.md" if reference.is_whole else str(Path(reference.file).with_suffix(".md"))
