"""The terminal: what is printed is text, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from erta_framework.text import escape_text


class TextConsole(Console):
    """A rich console that escapes the control characters in whatever it shows."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A text to show; here rich would drop some control characters unseen."""
        return super().render_str(escape_text(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The parts of something to show; cursor movements of rich itself are kept."""
        for part in super().render(renderable, options):
            text = part.text if part.control else escape_text(part.text)
            yield part if text == part.text else Segment(text, part.style)


def make_console(**options: Any) -> Console:
    r"""A console for text from outside: no markup, no emoji codes, no control characters.

    It writes to standard output as it is now, so that redirection and tests see it.

    Args:
        options: As of `rich.console.Console`.

    Example:
        >>> make_console().print("[bold]\x1b[2J")
        [bold]\x1b[2J
    """
    return TextConsole(**{"highlight": False, "markup": False, "emoji": False, **options})
