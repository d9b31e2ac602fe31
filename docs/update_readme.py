"""Write the measured table into the README: `python docs/update_readme.py`."""

from __future__ import annotations

import re
from pathlib import Path

from tables.ablation import ablation_summary
from tables.data import load

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- ablation:begin -->", "<!-- ablation:end -->"


def rendered(text: str) -> str:
    """The text of the README with the table of `docs/data/ablation.json` between its markers.

    Raises:
        ValueError: The markers are missing.
        MissingDataError: The file is missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the README must hold {BEGIN} and {END} once")
    summary = f"{BEGIN}\n{ablation_summary(load('ablation'))}\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: summary, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
