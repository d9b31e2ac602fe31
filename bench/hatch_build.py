"""Puts the families of small pipelines, which live with the tests, into the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TinyPipelines(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `tiny_pipelines`; an editable install finds the package on its path instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            families = Path(self.root).parent / "tests" / "tiny_pipelines"
            build_data["force_include"][str(families)] = "tiny_pipelines"
