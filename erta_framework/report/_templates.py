"""HTML pages from Jinja2 templates: style and pictures lie inside the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erta_framework.optional_dependencies import require_extra
from erta_framework.text import escape_text

PACKAGE = "erta_framework.report"


def render_page(
    template: str, values: Mapping[str, Any], *, package: str | None = None, wanted_by: str
) -> str:
    """Render a template as a whole page.

    Values are escaped, also their control characters. A template that asks for a value that is not
    there is an error.

    Args:
        template: Name of the template, such as `"comparison.html"`.
        values: What it shows.
        package: Package whose folder `templates` holds it; it may extend `base.html` and import
            `parts.html` of the report. By default the report itself.
        wanted_by: Who renders, for the error message.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    require_extra("jinja2", extra="report", wanted_by=wanted_by)
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    packages = [PACKAGE] if package is None else [package, PACKAGE]
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        finalize=escape_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = format_count
    return environment.get_template(template).render(values)


def escape_shown(value: Any) -> Any:
    """A value that a template shows, with escapes for the control characters of a text."""
    return (
        escape_text(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
    )


def embed_image(path: Path) -> str:
    """A picture file as a data URI.

    Example:
        >>> embed_image(Path("plot.png"))  # doctest: +SKIP
        'data:image/png;base64,...'
    """
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:image/{path.suffix.removeprefix('.')};base64,{data}"


def format_count(value: float) -> str:
    """A mean count without needless decimals.

    Example:
        >>> format_count(25.0), format_count(24.5)
        ('25', '24.5')
    """
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"
