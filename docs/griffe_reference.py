"""Two things that the reference generator cannot see by itself in the sources."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ReferencePages(griffe.Extension):
    """Shows `Example:` sections as code, and the options of policies in their signatures."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Read the section `Example:` as `Examples:`, which is the one that the parser knows."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Mark subclasses of `Policy` as what they make themselves: keyword-only dataclasses."""
        if any(str(base).rpartition(".")[2] == "Policy" for base in cls.bases):
            keywords = [griffe.ExprKeyword("kw_only", "True"), griffe.ExprKeyword("eq", "False")]
            marker = griffe.ExprCall(griffe.ExprName("dataclasses.dataclass"), keywords)
            cls.decorators.append(griffe.Decorator(marker, lineno=None, endlineno=None))
