"""The card of a profile: what it was calibrated for, where it comes from, what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from erta_framework.budgets import MeasuredFront, list_measured_units
from erta_framework.calibration import MEASURED, Profile
from erta_framework.text import escape_line

HEADER = """---
library_name: erta-framework
tags:
- diffusion
- caching
- erta-profile
---
"""
"""Metadata by which hubs list cards; it holds nothing of the profile, which is not trusted."""


def write_profile_card(profile: Profile, name: str, reference: str | None = None) -> str:
    """The Markdown card of a profile, as `erta profile push` puts it beside the file.

    Args:
        profile: What the card describes.
        name: Title of the card, such as `owner/name`.
        reference: How users name the profile, such as `"hf:owner/name"`; None leaves that out.

    Raises:
        ProfileError: What it holds as measured is not readable.

    Example:
        >>> profile = Profile("toy", {"num_steps": "4"}, {}, samples=2)
        >>> write_profile_card(profile, "a/b").splitlines()[8]
        '# a/b'
    """
    return HEADER + "\n".join(list_lines(profile, name, reference))


def list_lines(profile: Profile, name: str, reference: str | None) -> Iterator[str]:
    """The lines of a card below its header."""
    yield f"\n# {escape_markdown(name)}\n"
    yield (
        f"A calibration profile of erta_framework: kind `{escape_code(profile.kind)}`, "
        f"{profile.num_steps} steps, {profile.samples} samples, digest `{profile.digest}`.\n"
    )
    if reference is not None:
        yield f"```yaml\nprofile: {escape_line(reference)}\n```\n"
    yield "## Calibrated for\n"
    yield "A run that differs in one of these is refused, unless its policy allows the field.\n"
    yield from make_table(("Field", "Value"), sorted(profile.fingerprint.items()))
    facts = list_provenance(profile)
    if facts:
        yield "## Where it comes from\n"
        yield from make_table(("Fact", "Value"), sorted(facts.items()))
    for unit in list_measured_units(profile):
        front = MeasuredFront.of(profile, unit)
        if front is not None:
            yield from describe_front(front, profile.num_steps)


def list_provenance(profile: Profile) -> Mapping[str, str]:
    """Where a profile comes from, without the facts of what was measured on it."""
    return {k: v for k, v in profile.provenance.items() if not k.startswith(MEASURED)}


def describe_front(front: MeasuredFront, num_steps: int) -> Iterator[str]:
    """What replayed plans measured, as a section."""
    yield f"## Measured: {escape_markdown(front.unit)}\n"
    if front.policies:
        yield f"Replayed with {escape_markdown(front.policies)}.\n"
    place = f", seconds on {escape_markdown(front.device)}" if front.timed else ""
    yield (
        f"PSNR to {escape_markdown(front.target)} in dB, mean and deviation over calibration "
        f"samples; calls are of each branch of guidance{place}.\n"
    )
    full = len(front.seconds) - 1
    rows = [
        (
            f"{calls} of {num_steps}",
            f"{front.psnr[at]:.1f} ± {front.psnr_std[at]:.1f}",
            f"{front.refined_psnr[at]:.1f}",
            *((f"{front.seconds[at]:.3g}",) if front.timed else ()),
        )
        for at, calls in enumerate(front.calls)
    ]
    if front.timed:
        rows.append((f"{num_steps} of {num_steps}", "", "", f"{front.seconds[full]:.3g}"))
    yield from make_table(
        ("Calls", "PSNR", "refined", *(("Seconds",) if front.timed else ())), rows
    )


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; its cells are escaped."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(escape_markdown, row))} |"
    yield ""


def escape_markdown(text: object) -> str:
    r"""A text from outside on one line of Markdown: no markup, no HTML, no cell of a table.

    Example:
        >>> escape_markdown("<b>|_x_")
        '&lt;b&gt;\\|\\_x\\_'
    """
    shown = escape_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#~!" else char for char in shown)


def escape_code(text: object) -> str:
    """A text from outside between the backticks of code."""
    return escape_line(text).replace("`", "'")
