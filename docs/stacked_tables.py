"""Each cell of a table carries the heading of its column, which a phone shows beside it.

As a hook of mkdocs it adds an extension to Python-Markdown; `stylesheets/tables.css` stacks the
rows of a table where the screen is narrow.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig

AFTER_INLINE = 5
"""Python-Markdown's own steps have 20 and 10; headings must be text by then."""
MOST_COLUMNS = 10
"""Tables with more are set smaller."""

ONE_LINE = 22
"""Characters of a label that fit beside its cell on a phone."""


class CellLabels(Treeprocessor):
    """Writes `data-label` on the cells of every table."""

    def run(self, root: Element) -> None:
        """Label the cells below an element."""
        for table in root.iter("table"):
            labels = [read_text(heading) for heading in table.iter("th")]
            if len(labels) > MOST_COLUMNS:
                table.set("data-wide", "")
            for row in table.iter("tr"):
                for label, cell in zip(labels, row.findall("td"), strict=False):
                    cell.set("data-label", label)
                    if len(label) > ONE_LINE:
                        cell.set("data-lines", str(1 + len(label) // ONE_LINE))


class StackedTables(Extension):
    """The labels of `CellLabels`, as an extension."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Add the step to a converter."""
        md.treeprocessors.register(CellLabels(md), "cell-labels", AFTER_INLINE)


def read_text(element: Element) -> str:
    """Everything that a reader sees of an element, in one line.

    Example:
        >>> from xml.etree.ElementTree import fromstring
        >>> read_text(fromstring("<th>PSNR <code>dB</code></th>"))
        'PSNR dB'
    """
    return " ".join("".join(element.itertext()).split())


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Called by mkdocs once the configuration is read."""
    config.markdown_extensions.append(StackedTables())  # type: ignore[arg-type]
    return config
