"""The report as one HTML file that needs nothing beside it: pictures and style are inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from erta_framework.report._comparison import Comparison, Row
from erta_framework.session import StepTrace, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page shows besides the comparison.

    Attributes:
        title: Heading.
        setting: Facts of the run, in order.
        environment: Machine, versions and date, in order.
        explanation: Who answers which hook.
        videos: For each method, the GIF of each sample.
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


def render(comparison: Comparison, page: Page) -> str:
    """The whole page."""
    subject = comparison.rows[comparison.subject]
    body = [
        f"<h1>{escape(page.title)}</h1>",
        f"<p>{escape(headline(comparison))}</p>",
        cards(comparison.rows[0], subject),
        "<h2>Side by side</h2>",
        f'<p class="soft">{escape(grid_note(comparison))}</p>',
        grid(comparison, page.videos),
        "<h2>Measured</h2>",
        table(comparison),
        "<h2>Which steps ran the network</h2>",
        plot(page),
        why(subject, comparison.traces[comparison.subject], page.explanation),
        "<h2>What was compared</h2>",
        facts({method.name: method.detail for method in comparison.methods}),
        "<h2>Setting</h2>",
        facts(page.setting),
        "<h2>Machine and versions</h2>",
        facts(page.environment),
    ]
    return document(page.title, body)


def document(title: str, body: Sequence[str]) -> str:
    """A whole page of these parts, in the style of the report."""
    style = files("erta_framework.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def headline(comparison: Comparison) -> str:
    """What the numbers say, in two sentences, whoever comes out first."""
    full, subject = comparison.rows[0], comparison.rows[comparison.subject]
    text = (
        f"{subject.name} sampled {len(comparison.prompts)} held-out prompts with "
        f"{count(subject.calls)} network calls a video instead of {count(full.calls)}."
    )
    same = [row for row in comparison.rows[1:] if row.calls == subject.calls]
    if len(same) < 2:
        return text
    ranked = sorted(same, key=lambda row: row.psnr_mean or 0.0, reverse=True)
    order = ", ".join(f"{row.name} ({row.psnr_mean:.1f} dB)" for row in ranked)
    return f"{text} At this number of calls, from closest to the full run to furthest: {order}."


def grid_note(comparison: Comparison) -> str:
    """What the rows share, and what stands under the videos."""
    name = comparison.rows[0].name
    return (
        "Every row starts from the same noise. Under each video stands its PSNR against the "
        f"{name.lower()}: higher is closer."
    )


def cards(full: Row, subject: Row) -> str:
    """The four numbers that matter most."""
    entries = [
        (f"{full.calls / subject.calls:.2f}×", "fewer network calls"),
        (f"{subject.speedup:.2f}×", "measured speed-up"),
        (f"{subject.psnr_mean or 0:.1f} dB", "PSNR against the full run"),
        (f"{subject.ssim_mean or 0:.3f}", "SSIM against the full run"),
    ]
    inner = "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in entries)
    return f'<div class="cards">{inner}</div>'


def grid(comparison: Comparison, videos: Sequence[Sequence[Path]]) -> str:
    """Prompts down, methods across; every cell an animated picture."""
    heads, lines = ["<th></th>"], []
    for k, row in enumerate(comparison.rows):
        heads.append(
            f"<th{mark(k, comparison)}>{escape(row.name)}<span>{count(row.calls)} calls</span></th>"
        )
    for number, prompt in enumerate(comparison.prompts):
        cells = [f"<th>{escape(prompt)}</th>"]
        for k, row in enumerate(comparison.rows):
            note = f"{row.psnr[number]:.1f} dB" if row.psnr else "reference"
            alt = escape(f"{prompt}, {row.name}", quote=True)
            image = f'<img src="{inlined(videos[k][number])}" alt="{alt}">'
            cells.append(f"<td{mark(k, comparison)}>{image}<span>{note}</span></td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="grid"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def table(comparison: Comparison) -> str:
    """The measured table, best fidelity in bold."""
    best_psnr = max((row.psnr_mean or 0.0 for row in comparison.rows), default=0.0)
    best_ssim = max((row.ssim_mean or 0.0 for row in comparison.rows), default=0.0)
    lines = []
    for k, row in enumerate(comparison.rows):
        cells = [
            count(row.calls),
            f"{count(row.computed)} of {row.steps}",
            f"{row.seconds:.2f}",
            f"{row.speedup:.2f}×",
            best(row.psnr_mean, best_psnr, "{:.2f}"),
            best(row.ssim_mean, best_ssim, "{:.4f}"),
        ]
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr{mark(k, comparison)}><th>{escape(row.name)}</th>{columns}</tr>")
    heads = ("", "network calls", "steps computed", "seconds", "speed-up", "PSNR (dB)", "SSIM")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        '<p class="soft">Means over '
        f"{len(comparison.prompts)} prompts; wall seconds for all of them after a warm-up, methods "
        "taking turns. PSNR and SSIM compare with the first row, on samples in [-1, 1].</p>"
        '<div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def plot(page: Page) -> str:
    """The schedule plot, in the colours of the page."""
    return (
        '<figure><div class="scroll"><picture>'
        f'<source srcset="{inlined(page.plot_dark)}" media="(prefers-color-scheme: dark)">'
        f'<img class="plot" src="{inlined(page.plot)}" alt="{escape(page.plot_note, quote=True)}">'
        f"</picture></div><figcaption>{escape(page.plot_note)}</figcaption></figure>"
    )


def why(row: Row, trace: Trace, explanation: str) -> str:
    """Every step of the subject's first batch: computed or reused, from where, and why."""
    lines = "".join(step_line(step) for step in trace.steps)
    return (
        f"<details open><summary>Why each step of {escape(row.name)} was computed or reused"
        "</summary>"
        '<div class="scroll tall"><table class="steps"><thead><tr><th>step</th><th>sigma</th>'
        "<th>network</th><th>uses step</th><th>reason</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div></details>"
        f"<details><summary>Who answers which hook</summary><pre>{escape(explanation)}</pre>"
        "</details>"
    )


def step_line(step: StepTrace) -> str:
    """One step; branches share a decision unless their policy says otherwise."""
    kind = "computed" if step.computed else "reused"
    sources = {call.source for call in step.calls if call.source is not None}
    source = ", ".join(str(source) for source in sorted(sources)) or "-"
    reasons = escape("; ".join(dict.fromkeys(call.reason for call in step.calls)))
    return (
        f"<tr><td>{step.index}</td><td>{step.start:.3f}</td>"
        f'<td><span class="tag {kind}">{kind}</span></td><td>{source}</td><td>{reasons}</td></tr>'
    )


def facts(values: Mapping[str, str]) -> str:
    """Names and values as a list."""
    entries = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items())
    return f"<dl>{entries}</dl>"


def inlined(path: Path) -> str:
    """A picture file as a data URI."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:image/{path.suffix.removeprefix('.')};base64,{data}"


def mark(position: int, comparison: Comparison) -> str:
    """The class attribute of the subject's row or column."""
    return ' class="subject"' if position == comparison.subject else ""


def best(value: float | None, top: float, form: str) -> str:
    """A number, bold where it is the best of its column; a dash for the reference."""
    if value is None:
        return "–"
    text = form.format(value)
    return f"<b>{text}</b>" if value == top else text


def count(value: float) -> str:
    """A mean count without needless decimals."""
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"
