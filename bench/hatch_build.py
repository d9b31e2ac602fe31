"""Puts `tiny_pipelines`, which lives with the tests of the checkout, into what is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TinyPipelines(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the package `tiny_pipelines` to a wheel and to an sdist.

    An editable install adds nothing: it finds the package on its path, see `dev-mode-dirs`.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the folder to copy.

        Raises:
            FileNotFoundError: It is neither in the checkout nor in an unpacked sdist.
        """
        if version != "standard":
            return
        root = Path(self.root)
        places = [root.parent / "tests" / "tiny_pipelines", root / "tiny_pipelines"]
        found = next((place for place in places if (place / "__init__.py").is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"erta-bench needs tiny_pipelines, which is at neither of {places}; build it from "
                "a checkout of erta_framework, or from its sdist"
            )
        build_data["force_include"][str(found)] = "tiny_pipelines"
