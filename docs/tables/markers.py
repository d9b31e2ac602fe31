"""The text that replaces each marker of a page, such as `<!-- table:ablation -->`.

A table of a new file in `docs/data/` is a function of its record and one line of `SECTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from erta_bench.studies import SETTINGS
from tables.ablation import describe_findings, render_ablation
from tables.accuracy import render_accuracy, render_image_accuracy
from tables.batch import render_batch
from tables.budgets import render_budgets, render_lambda
from tables.chosen import render_chosen
from tables.cli import render_cli
from tables.combinations import render_combinations
from tables.data import (
    BUNDLED,
    DATA,
    GALAXIES,
    MissingDataError,
    command_study,
    find_command,
    load_record,
)
from tables.families import render_families
from tables.fitted import render_fitted, render_fitted_on
from tables.masked import render_masked, render_masked_speed
from tables.methods import render_methods
from tables.modules import render_modules, render_plans
from tables.networks import render_each, render_galaxies, render_networks
from tables.overhead import render_attached, render_overhead, render_sites
from tables.peers import render_goals, render_peers, render_peers_summary
from tables.pipeline import render_pipeline
from tables.places import render_places
from tables.plans import render_plan_study
from tables.policies import render_policies
from tables.promises import render_promises
from tables.quantised import render_layers, render_quantised
from tables.scale import render_scale, render_simulation
from tables.studies import (
    CORRECTIONS,
    MODULE_TABLES,
    NOISE_LENGTH,
    SETTINGS_OF_METHODS,
    render_factors,
    render_study,
)
from tables.support import render_checks, render_pipelines, render_schedulers
from tables.surrogates import describe_surrogates, render_gates, render_surrogates
from tables.worst import describe_worst, render_worst


@dataclass(frozen=True, slots=True)
class Section:
    """A function and the files whose records it renders; they are read when a page needs them.

    Attributes:
        make: Takes one record a file.
        files: Names of files in `docs/data/`; none where the code itself is asked.
        optional: Whether nothing is shown until the files are there.
    """

    make: Callable[..., str]
    files: tuple[str, ...]
    optional: bool = False

    def __call__(self) -> str:
        """The Markdown that a page shows."""
        if self.optional and not all((DATA / f"{name}.json").is_file() for name in self.files):
            return ""
        return self.make(*map(load_record, self.files))


def make_section(make: Callable[..., str], *files: str, optional: bool = False) -> Section:
    """A section of a function and the names of its files."""
    return Section(make, files, optional)


SECTIONS: dict[str, Section] = {
    "table:ablation": make_section(render_ablation, "ablation"),
    "findings:ablation": make_section(describe_findings, "ablation"),
    "table:accuracy": make_section(render_accuracy, "accuracy"),
    "table:images": make_section(render_image_accuracy, "accuracy_image"),
    "table:families": make_section(render_families, "families"),
    "table:fitted": make_section(render_fitted, "fitted"),
    "shapes:fitted": make_section(
        render_fitted_on, "fitted_25", "fitted_17", "fitted_12", "fitted_robust"
    ),
    "unet:fitted": make_section(partial(render_fitted_on, model="shapes-unet"), "fitted_unet"),
    "choices:fitted": make_section(render_fitted_on, "fitted_choices"),
    "table:overhead": make_section(render_overhead, "overhead"),
    "table:sites": make_section(render_sites, "sites"),
    "table:attach": make_section(render_attached, "attach_overhead"),
    "table:batch": make_section(render_batch, "batch"),
    "table:budgets": make_section(render_budgets, "budgets"),
    "table:lambda": make_section(render_lambda, "lambda"),
    "table:combinations": make_section(render_combinations),
    "table:promises": make_section(render_promises),
    "table:policies": make_section(render_policies, "policies"),
    "summary:peers": make_section(render_peers_summary, "peers"),
    "goals:peers": make_section(render_goals, "peers"),
    "table:peers": make_section(render_peers, "peers"),
    "summary:peersflux": make_section(render_peers_summary, "peersflux"),
    "goals:peersflux": make_section(render_goals, "peersflux"),
    "table:peersflux": make_section(render_peers, "peersflux"),
    "summary:peersunet": make_section(render_peers_summary, "peersunet"),
    "goals:peersunet": make_section(render_goals, "peersunet"),
    "table:peersunet": make_section(render_peers, "peersunet"),
    "networks:peers": make_section(render_networks, *BUNDLED, *GALAXIES),
    "networks:galaxy": make_section(render_galaxies, *GALAXIES),
    "summaries:galaxy": make_section(render_each, *GALAXIES),
    "table:chosen": make_section(render_chosen, *BUNDLED),
    "table:methods": make_section(render_methods),
    "table:modulesunet": make_section(render_modules, "modules_unet"),
    "table:moduleswan": make_section(render_modules, "modules_wan"),
    "table:modulesflux": make_section(render_modules, "modules_flux"),
    "table:modulesmild": make_section(render_modules, "modules_mild"),
    **{
        f"table:plans{name}": make_section(render_plans, f"modules_plans_{name}", optional=True)
        for name in ("unet", "wan", "flux")
    },
    "study:noiselength": make_section(
        partial(render_study, columns=NOISE_LENGTH),
        "study_noise_length_shapes_unet",
        "study_noise_length_shapes_wan",
    ),
    "study:noisescale": make_section(
        render_factors, "study_noise_scale_shapes_unet", "study_noise_scale_shapes_wan"
    ),
    "study:moduletables": make_section(
        partial(render_study, columns=MODULE_TABLES),
        "study_module_tables_shapes_unet",
        "study_module_tables_shapes_wan",
    ),
    "study:quantisedunet": make_section(render_quantised, "study_quantised_shapes_unet"),
    "study:quantisedwan": make_section(
        render_quantised, "study_quantised_shapes_wan", optional=True
    ),
    "study:quantisedlayer": make_section(render_layers, "study_quantised_layer"),
    "findings:surrogates": make_section(
        describe_surrogates, "study_surrogates_shapes-flux", "study_surrogates_shapes-wan"
    ),
    "table:gates": make_section(render_gates, "study_gates_shapes-flux", "study_gates_shapes-wan"),
    "surrogates:flux": make_section(render_surrogates, "study_surrogates_shapes-flux"),
    "surrogates:wan": make_section(render_surrogates, "study_surrogates_shapes-wan"),
    "study:corrections": make_section(
        partial(render_study, columns=CORRECTIONS),
        "study_corrections_shapes_unet",
        "study_corrections_shapes_wan",
        "study_corrections_shapes_flux",
        optional=True,
    ),
    **{
        f"study:{name}": make_section(
            partial(render_study, columns=SETTINGS_OF_METHODS),
            *(command_study(name, model)[0] for model in settings.models),
        )
        for name, settings in SETTINGS.items()
    },
    **{
        f"study:plans{name}": make_section(
            render_plan_study, f"study_plans_shapes_{name}", optional=True
        )
        for name in ("flux", "wan", "unet")
    },
    **{
        f"{kind}:worst{name}": make_section(make, f"study_worst_samples_{model}", optional=True)
        for name, model in (("wan", "shapes_wan"), ("galaxy", "galaxy_hsc32"))
        for kind, make in (("table", render_worst), ("findings", describe_worst))
    },
    "table:masked": make_section(render_masked, "masked"),
    "permutations:masked": make_section(render_masked, "masked_permutations"),
    "speed:masked": make_section(render_masked_speed, "masked_speed"),
    "table:scale": make_section(render_scale, "scale"),
    "table:simulate": make_section(render_simulation, "simulate"),
    "table:pipeline": make_section(render_pipeline, "pipeline", "ablation"),
    "table:places": make_section(render_places),
    "cli": make_section(render_cli),
    "checks": make_section(render_checks),
    "table:schedulers": make_section(render_schedulers),
    "table:pipelines": make_section(render_pipelines),
}


def fill_markers(markdown: str) -> str:
    """A page with its markers replaced.

    Raises:
        MissingDataError: A marker names no section, or its numbers are missing.
    """

    def section(match: re.Match[str]) -> str:
        if match[1] not in SECTIONS:
            raise MissingDataError(f"<!-- {match[1]} --> is none of {', '.join(SECTIONS)}")
        return SECTIONS[match[1]]()

    return re.sub(r"<!-- ([a-z0-9:]+) -->", section, markdown)


def list_commands() -> list[str]:
    """The commands that write every file that a page shows, each once."""
    files = dict.fromkeys(name for section in SECTIONS.values() for name in section.files)
    return [find_command(name) for name in files]
