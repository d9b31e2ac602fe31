"""What stands in a page for each marker, such as `<!-- table:ablation -->`.

A table of a new file in `docs/data/` is a function of its record and one line of `SECTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tables.ablation import ablation_section, findings
from tables.accuracy import accuracy_section, image_accuracy_section
from tables.batch import batch_section
from tables.budgets import budgets_section, lambda_section
from tables.cli import cli_reference
from tables.combinations import combinations_section
from tables.data import MissingDataError, command, load
from tables.families import families_section
from tables.fitted import fitted_section, fitted_shapes
from tables.overhead import attach_section, overhead_section
from tables.peers import peers_section, peers_summary
from tables.pipeline import pipeline_section
from tables.policies import policies_section
from tables.scale import scale_section, simulate_section
from tables.support import checks_table, pipelines_table, schedulers_table


@dataclass(frozen=True, slots=True)
class Section:
    """What a function makes of the records of some files, read when a page asks.

    Attributes:
        make: Takes one record a file.
        files: Names of files in `docs/data/`; none where the code itself is asked.
    """

    make: Callable[..., str]
    files: tuple[str, ...]

    def __call__(self) -> str:
        """The Markdown that a page shows."""
        return self.make(*map(load, self.files))


def shown(make: Callable[..., str], *files: str) -> Section:
    """A section of a function and the names of its files."""
    return Section(make, files)


SECTIONS: dict[str, Section] = {
    "table:ablation": shown(ablation_section, "ablation"),
    "findings:ablation": shown(findings, "ablation"),
    "table:accuracy": shown(accuracy_section, "accuracy"),
    "table:images": shown(image_accuracy_section, "accuracy_image"),
    "table:families": shown(families_section, "families"),
    "table:fitted": shown(fitted_section, "fitted"),
    "shapes:fitted": shown(fitted_shapes, "fitted_25", "fitted_17", "fitted_12", "fitted_robust"),
    "unet:fitted": shown(partial(fitted_shapes, model="shapes-unet"), "fitted_unet"),
    "choices:fitted": shown(fitted_shapes, "fitted_choices"),
    "table:overhead": shown(overhead_section, "overhead"),
    "table:attach": shown(attach_section, "attach_overhead"),
    "table:batch": shown(batch_section, "batch"),
    "table:budgets": shown(budgets_section, "budgets"),
    "table:lambda": shown(lambda_section, "lambda"),
    "table:combinations": shown(combinations_section),
    "table:policies": shown(policies_section, "policies"),
    "summary:peers": shown(peers_summary, "peers"),
    "table:peers": shown(peers_section, "peers"),
    "summary:peersflux": shown(peers_summary, "peersflux"),
    "table:peersflux": shown(peers_section, "peersflux"),
    "summary:peersunet": shown(peers_summary, "peersunet"),
    "table:peersunet": shown(peers_section, "peersunet"),
    "table:scale": shown(scale_section, "scale"),
    "table:simulate": shown(simulate_section, "simulate"),
    "table:pipeline": shown(pipeline_section, "pipeline", "ablation"),
    "cli": shown(cli_reference),
    "checks": shown(checks_table),
    "table:schedulers": shown(schedulers_table),
    "table:pipelines": shown(pipelines_table),
}


def filled(markdown: str) -> str:
    """A page with its markers replaced.

    Raises:
        MissingDataError: A marker names no section, or its numbers are missing.
    """

    def section(match: re.Match[str]) -> str:
        if match[1] not in SECTIONS:
            raise MissingDataError(f"<!-- {match[1]} --> is none of {', '.join(SECTIONS)}")
        return SECTIONS[match[1]]()

    return re.sub(r"<!-- ([a-z:]+) -->", section, markdown)


def commands() -> list[str]:
    """The commands that write every file that a page shows, each once."""
    files = dict.fromkeys(name for section in SECTIONS.values() for name in section.files)
    return [command(name) for name in files]
