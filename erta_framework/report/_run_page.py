"""`write_run_page`: the requests of a run step by step, as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from erta_framework.environment import collect_versions, describe_machine
from erta_framework.errors import InputError
from erta_framework.report._templates import render_page
from erta_framework.session import Trace, explain_reason

MOST = 100
"""Requests that a page shows, of the newest."""


def write_run_page(
    traces: Sequence[Trace], path: str | Path, *, title: str, facts: str = "", said: str = ""
) -> Path:
    """Write a page that shows every step of every request, with the reasons.

    Args:
        traces: One a request, oldest first; the newest 100 are shown.
        path: The page; it needs no other file. Its folder is made if need be.
        title: Heading.
        facts: What ran, in lines of text.
        said: A summary, in lines of text.

    Raises:
        InputError: There is no trace.
        MissingExtraError: Jinja2 is not installed.

    Example:
        >>> write_run_page(samples.traces, "run.html", title="Mine")  # doctest: +SKIP
    """
    if not traces:
        raise InputError("there is no request to report, none was made")
    shown = traces[-MOST:]
    values = {
        "title": title,
        "facts": facts,
        "said": said,
        "traces": shown,
        "left": len(traces) - len(shown),
        "explain": explain_reason,
        "environment": {
            key: str(value)
            for key, value in {**describe_machine(None), **collect_versions()}.items()
            if value
        },
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render_page("run.html", values, wanted_by="run.report"), encoding="utf-8")
    return target
