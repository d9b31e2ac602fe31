"""The HTML page of a comparison. What it says is here, how it looks in `templates/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from erta_framework.report._comparison import Comparison
from erta_framework.report._templates import embed_image, format_count, render_page
from erta_framework.session import StepTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page shows besides the comparison.

    Attributes:
        title: Heading.
        setting: Facts of the run, in order.
        environment: Machine, versions and date, in order.
        explanation: Which policy answers which hook.
        videos: For each method, the picture file of each sample.
        plot, plot_dark: The schedule plot for light and for dark pages.
        plot_note: What the plot shows.
    """

    title: str
    setting: Mapping[str, str]
    environment: Mapping[str, str]
    explanation: str
    videos: Sequence[Sequence[Path]]
    plot: Path
    plot_dark: Path
    plot_note: str


@dataclass(frozen=True, slots=True)
class StepLine:
    """One line of the table of steps.

    Attributes:
        index: The step.
        sigma: Noise level at which it starts.
        kind: `"computed"` or `"reused"`.
        sources: Steps whose outputs it reused, or a dash.
        reasons: Why, of all branches.
    """

    index: int
    sigma: float
    kind: str
    sources: str
    reasons: str


def render_comparison(comparison: Comparison, page: Page) -> str:
    """The whole page as HTML that needs no other file.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    rows = comparison.rows
    values = {
        "comparison": comparison,
        "page": page,
        "title": page.title,
        "headline": write_headline(comparison),
        "best_psnr": max((row.psnr_mean or 0.0 for row in rows), default=0.0),
        "best_exact": max((row.exact_psnr_mean or 0.0 for row in rows[1:]), default=0.0),
        "number_of_prompts": count_prompts(comparison),
        "work_note": describe_work(comparison),
        "clock_note": describe_clock(comparison),
        "best_ssim": max((row.ssim_mean or 0.0 for row in rows), default=0.0),
        "videos": [[embed_image(path) for path in column] for column in page.videos],
        "plot_light": embed_image(page.plot),
        "plot_dark": embed_image(page.plot_dark),
        "steps": [_describe_step(step) for step in comparison.traces[comparison.subject].steps],
        "methods": {method.name: method.detail for method in comparison.methods},
    }
    return render_page("comparison.html", values, wanted_by="write_report")


def write_headline(comparison: Comparison) -> str:
    """What the numbers say, in two sentences, whoever comes out first."""
    full, subject = comparison.rows[0], comparison.rows[comparison.subject]
    text = (
        f"{subject.name} sampled {count_prompts(comparison)} with "
        f"{format_count(subject.calls)} network calls each instead of {format_count(full.calls)}."
    )
    same = [row for row in comparison.rows[1:] if row.calls == subject.calls]
    if len(same) < 2:
        return text
    ranked = sorted(same, key=lambda row: row.psnr_mean or 0.0, reverse=True)
    order = ", ".join(f"{row.name} ({row.psnr_mean:.1f} dB)" for row in ranked)
    return f"{text} At this number of calls, from closest to the full run to furthest: {order}."


def count_prompts(comparison: Comparison) -> str:
    """How many prompts were sampled."""
    number = len(comparison.prompts)
    return "1 prompt" if number == 1 else f"{number} prompts"


def describe_work(comparison: Comparison) -> str:
    """Whether the rows did as much work as the subject, and what else to compare them with.

    Example:
        >>> describe_work(comparison)  # doctest: +SKIP
        'All rows below the first did the work of 25 network calls a branch, within 5 %.'
    """
    subject = comparison.rows[comparison.subject]
    own = format_count(round(comparison.count_calls(subject), 1))
    unequal = comparison.list_unequal()
    if not unequal:
        return f"All rows below the first did the work of {own} network calls a branch, within 5 %."
    others = ", ".join(
        f"{row.name} ({format_count(round(comparison.count_calls(row), 1))})" for row in unequal
    )
    return (
        f"Not equal work: {subject.name} did that of {own} network calls a branch. More than 5 % "
        f"off it: {others}. Compare each of them with the plain row at its own number of calls."
    )


def describe_clock(comparison: Comparison) -> str:
    """Which seconds the page shows, and why."""
    if comparison.clock == "processor":
        return (
            "Seconds are of processor time, because other programs share this machine: wall "
            "seconds would say more about them."
        )
    return "Seconds are wall seconds."


def _describe_step(step: StepTrace) -> StepLine:
    # branches share a decision unless their policy decides for each of them
    sources = {call.source for call in step.calls if call.source is not None}
    return StepLine(
        index=step.index,
        sigma=step.start,
        kind="computed" if step.computed else "reused",
        sources=", ".join(str(source) for source in sorted(sources)) or "–",
        reasons="; ".join(dict.fromkeys(call.reason for call in step.calls)),
    )
