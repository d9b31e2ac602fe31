"""Write the measured tables into the README: `python docs/update_readme.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tables.data import BUNDLED, GALAXIES, load_record
from tables.networks import render_networks
from tables.peers import describe_claim

README = Path(__file__).parents[1] / "README.md"
SUMMARIES: Mapping[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "claim": (describe_claim, (*BUNDLED, *GALAXIES)),
    "peers": (render_networks, BUNDLED),
}
"""What stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, of which files."""


def fill_summaries(text: str) -> str:
    """The text of the README with the tables of `docs/data/` between their markers.

    Raises:
        ValueError: The markers are missing.
        MissingDataError: A file is missing.
    """
    for name, (summarise, files) in SUMMARIES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the README must hold {begin} and {end} once")
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}\n{summarise(*map(load_record, files))}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(fill_summaries(README.read_text(encoding="utf-8")), encoding="utf-8")
