"""A comparison as commands print it."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from erta_framework.report import Comparison, MethodRow, Report, count_prompts
from erta_framework.text import escape_line


def show_comparison(out: Console, comparison: Comparison, report: Report) -> None:
    """Print the measured table, whether work was equal, and where the report lies."""
    clock = "processor seconds, the machine is shared" if comparison.clock == "processor" else ""
    table = Table(
        title=f"{count_prompts(comparison)}, measured against the first row",
        title_justify="left",
        caption=clock or None,
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
    )
    table.add_column("")
    heads = ["calls", "work", "seconds", "speed", "PSNR\nfull"]
    heads += ["PSNR\nexact"] if comparison.exact_note else []
    for name in (*heads, "SSIM"):
        table.add_column(name, justify="right", no_wrap=True)
    for position, row in enumerate(comparison.rows):
        style = "bold" if position == comparison.subject else None
        table.add_row(escape_line(row.name), *make_cells(comparison, row), style=style)
    out.print(table)
    unequal = comparison.list_unequal()
    if unequal:
        names = ", ".join(f"{row.name} ({comparison.count_calls(row):.1f})" for row in unequal)
        subject = comparison.rows[comparison.subject]
        out.print(
            escape_line(
                f"not equal work: {subject.name} did that of "
                f"{comparison.count_calls(subject):.1f} network calls a branch; more than 5 % "
                f"off it: {names}; compare each with the plain row at its own calls"
            ),
            style="yellow",
            soft_wrap=True,
        )
    if comparison.exact_note:
        out.print(escape_line(f"exact solution: {comparison.exact_note}"), soft_wrap=True)
    out.print(escape_line(f"report         {report.html}"), soft_wrap=True)
    out.print(escape_line(f"contact sheet  {report.contact_sheet}"), soft_wrap=True)
    out.print(escape_line(f"animation      {report.animation}"), soft_wrap=True)


def make_cells(comparison: Comparison, row: MethodRow) -> list[str]:
    """What a row measured; a dash where there is nothing."""

    def show(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    exact = [show(row.exact_psnr_mean, "{:.2f}")] if comparison.exact_note else []
    return [
        f"{row.calls:.0f}",
        f"{comparison.count_calls(row):.1f}",
        f"{comparison.seconds(row):.2f}",
        f"{row.speedup:.2f}x",
        show(row.psnr_mean, "{:.2f}"),
        *exact,
        show(row.ssim_mean, "{:.4f}"),
    ]
