"""Tables of the documentation, made from the JSON files in `docs/data/` while the site is built.

As a hook of mkdocs it replaces markers such as `<!-- table:ablation -->` in a page;
`tables/markers.py` lists them. A missing file fails the build, so no page can show an old or an
invented number.
"""

from __future__ import annotations

from mkdocs.exceptions import PluginError

from tables.data import MissingDataError
from tables.markers import fill_markers


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs with the text of every page.

    Raises:
        PluginError: What a page shows is missing; ends the build with one line.
    """
    try:
        return fill_markers(markdown)
    except MissingDataError as error:
        raise PluginError(str(error)) from error
