"""The gallery of a folder of profiles, as a page or as Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from erta_framework.budgets import MeasuredFront, list_measured_units
from erta_framework.calibration import Profile
from erta_framework.errors import InputError, ProfileError
from erta_framework.report._profile_card import escape_markdown, list_provenance, make_table
from erta_framework.report._templates import render_page
from erta_framework.text import escape_line

HEAD = ("Profile", "Kind", "Model", "Steps", "Samples", "Latents", "Measured", "Made", "Digest")
MODEL = ("model.network", "model.class", "model.name")
"""Facts of a fingerprint that name a model, the best first."""
DATE = ("date", "created")


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One profile of a gallery.

    Attributes:
        path: Its file.
        name: The same, relative to the folder.
        profile: What it holds.
        measured: The best PSNR by network calls, in words.
    """

    path: Path
    name: str
    profile: Profile
    measured: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What a table shows of it, in the order of its head."""
        known, made = self.profile.fingerprint, list_provenance(self.profile)
        models = [known[fact] for fact in MODEL if fact in known]
        models += [value for fact, value in known.items() if fact.startswith("model.")]
        return (
            self.name,
            self.profile.kind,
            models[0] if models else "",
            known.get("num_steps", ""),
            str(self.profile.samples),
            known.get("latent_shape", ""),
            self.measured,
            next((made[fact] for fact in DATE if fact in made), ""),
            self.profile.digest[:8],
        )


def find_profiles(folder: Path) -> tuple[list[Exhibit], list[str]]:
    """The profiles below a folder, and why other safetensors files are left out.

    Raises:
        InputError: There is no such folder, or no profile in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with profiles (*.safetensors) in it")
    found, left = [], []
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        try:
            profile = Profile.load(path)
            found.append(Exhibit(path, name, profile, describe_measured(profile)))
        except ProfileError as error:
            left.append(f"{escape_line(name)}: {error}")
    if not found:
        raise InputError(
            f"no profile below {folder} ({len(left)} other safetensors files); make one with "
            "`erta calibrate`, or fetch one with `erta profile pull`"
        )
    return found, left


def describe_measured(profile: Profile) -> str:
    """The best PSNR that any replayed plan reached, by network calls; empty without one."""
    best: dict[int, float] = {}
    for unit in list_measured_units(profile):
        front = MeasuredFront.of(profile, unit)
        for calls, quality in zip(front.calls, front.psnr, strict=True) if front else ():
            best[calls] = max(quality, best.get(calls, quality))
    return ", ".join(f"{calls} calls {best[calls]:.1f} dB" for calls in sorted(best))


def write_gallery(exhibits: Sequence[Exhibit], path: Path, title: str = "Profiles") -> Path:
    """Write a gallery: a page for `.html`, a Markdown table for `.md`.

    Raises:
        InputError: The path has another ending.
        MissingExtraError: A page needs Jinja2.
    """
    rows = [exhibit.cells for exhibit in exhibits]
    if path.suffix == ".md":
        text = "\n".join([f"# {escape_markdown(title)}\n", *make_table(HEAD, rows)])
    elif path.suffix == ".html":
        links = [quote(os.path.relpath(each.path, path.parent)) for each in exhibits]
        values = {"title": title, "head": HEAD, "rows": list(zip(links, rows, strict=True))}
        text = render_page("gallery.html", values, wanted_by="a gallery page")
    else:
        raise InputError(f"a gallery is written as .html or .md, not {path.name!r}; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
