"""Text from outside, made safe to show; and JSON from outside, read with distrust.

Terminal, HTML and error messages all use this.

Names, paths, prompts and messages come from files, plugins and profiles. Shown as they are, they
could move the cursor, colour the screen, forge a line or be read backwards.
"""

from __future__ import annotations

import json
import re
from typing import Any

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, marks that turn the direction of reading, and halves of characters."""
LONGEST = 200
"""Characters of a value that a message shows."""
DEEPEST = 8
"""Deepest nesting of JSON that is read; that of our own files is 3."""
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def escape_text(text: str) -> str:
    r"""A text with visible escapes for its control characters; it keeps its lines and tabs.

    Example:
        >>> print(escape_text("red \x1b[31m"))
        red \x1b[31m
    """
    return CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def escape_line(text: object) -> str:
    r"""A name, a path or a prompt on one line: line breaks and tabs are escaped as well.

    Example:
        >>> print(escape_line("a\nb"))
        a\nb
    """
    return escape_text(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def show_value(value: object) -> str:
    """The `repr` of a value from outside, for a message: short, on one line, and never an error.

    Example:
        >>> show_value("x" * 1000)[-8:]
        'xxxx...'
    """
    try:
        shown = repr(value)
    except Exception as error:
        shown = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return shorten(escape_line(shown))


def show_error(error: BaseException) -> str:
    """Class and message of an exception from outside; see `show_value`.

    Example:
        >>> show_error(ValueError("no"))
        'ValueError: no'
    """
    try:
        said = str(error)
    except Exception as another:
        said = f"<a message that raises {type(another).__name__}>"
    return shorten(f"{type(error).__name__}: {escape_line(said)}", 5 * LONGEST)


def shorten(text: str, longest: int = LONGEST) -> str:
    """The beginning of a text that is too long to show."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def parse_json(text: str) -> Any:
    """JSON whose nesting is counted before it is parsed: deep nesting would exhaust the stack.

    Raises:
        ValueError: It is no JSON, nested deeper than `DEEPEST`, or has a key twice.
    """
    depth = deepest = 0
    for sign in re.findall(r"[\[{\]}]", STRINGS.sub("", text)):
        depth += 1 if sign in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise ValueError(f"it is nested {deepest} deep, at most {DEEPEST} is read")
    return json.loads(text, object_pairs_hook=_require_unique)


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no key is there twice: readers would disagree on which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key of its JSON is there twice")
    return found
