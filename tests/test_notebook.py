"""The notebook of the tutorials runs, and is committed without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/tutorials/first_hour.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    import nbformat

    held = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(held)
    for cell in held.cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.slow
# of the kernel's own event loop and sockets
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    held = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(held, timeout=300, resources=folder).execute()
    said = "".join(
        output.get("text", "") for cell in done.cells for output in cell.get("outputs", [])
    )
    assert "100 network calls" in said
    assert "34 network calls instead of 100" in said
    assert "it passes" in said
    drawn = [
        output
        for cell in done.cells
        for output in cell.get("outputs", [])
        if {"image/png", "image/gif"} & set(output.get("data", {}))
    ]
    assert len(drawn) == 4
