"""`--policy`, `--profile` and a budget: the policies of a run without a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from erta_framework.cli._models import find_profile
from erta_framework.cli._options import QUALITY_HELP, unset
from erta_framework.cli._policy_specs import (
    Budget,
    Spec,
    give_budget,
    give_profile,
    read_policies,
)
from erta_framework.config import (
    MaskedRunConfig,
    RunConfig,
    build_policies,
    options_of,
    registered_name,
)
from erta_framework.errors import CapabilityError, InputError
from erta_framework.plugins import (
    Choice,
    PipelineFacts,
    find_default_policy,
    load_chooser,
)
from erta_framework.text import escape_line

POLICIES = "Policies"
BUDGETS = ("calls", "speedup", "quality")
Config = TypeVar("Config", bound=RunConfig | MaskedRunConfig)


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Policies, and what they are given, instead of those of the configuration."""

    policy: Annotated[
        list[str] | None,
        unset(
            'A policy instead of those of the configuration: a name, or "{name: {option: value}}"; '
            "repeat for more.",
            panel=POLICIES,
        ),
    ] = None
    profile: Annotated[
        Path | None,
        unset(
            "Profile for the policies that read one: a file, or the name of a bundled model.",
            panel=POLICIES,
        ),
    ] = None
    calls: Annotated[
        int | None, unset("Budget in network calls of each branch.", panel=POLICIES, min=1)
    ] = None
    speedup: Annotated[
        float | None, unset("Budget as steps over network calls.", panel=POLICIES, min=1.0)
    ] = None
    quality: Annotated[str | None, unset(QUALITY_HELP, panel=POLICIES)] = None

    @property
    def budget(self) -> Budget | None:
        """The budget that is asked for, or None.

        Raises:
            InputError: More than one of `--calls`, `--speedup` and `--quality`.
        """
        given = {name: getattr(self, name) for name in BUDGETS}
        found = {name: value for name, value in given.items() if value is not None}
        if len(found) > 1:
            raise InputError(f"got --{' and --'.join(found)}; give one of them")
        return found or None

    def as_arguments(self) -> list[str]:
        """The options as they were written."""
        found = [word for text in self.policy or () for word in ("--policy", text)]
        for name in ("profile", *BUDGETS):
            value = getattr(self, name)
            found += [] if value is None else [f"--{name}", str(value)]
        return found

    def apply(self, config: Config) -> Config:
        """The configuration with these policies.

        With a profile or a budget alone, they go to the policies of the configuration. Where it has
        none, a profile goes to the default policy, and for a budget policies are chosen that need
        no profile, as a `Sampler` chooses them; it is said which.

        Raises:
            InputError: No policy takes the profile or the budget.
            ConfigError: A policy cannot be read.
            PolicyError: Nothing can be chosen for the budget without a profile.
        """
        if isinstance(config, RunConfig) and self.leaves_open(config):
            steps = config.solver.schedule(config.steps, config.sigmas).num_steps
            chosen = self.choose(PipelineFacts("Sampler", num_steps=steps))
            return replace(config, policies=chosen.policies)
        specs = [one for text in self.policy or () for one in read_policies(text)]
        if not specs and self.profile is None and self.budget is None:
            return config
        if not specs:
            specs = [{registered_name(type(one)): options_of(one)} for one in config.policies]
        specs = specs or [{find_default_policy(): {}}]
        return replace(config, policies=build_policies(self.complete(specs)))

    def leaves_open(self, config: RunConfig) -> bool:
        """Whether there is a budget, and neither it nor the configuration says for which policy."""
        named = self.policy or self.profile is not None or config.policies
        return self.budget is not None and not named

    def choose(self, facts: PipelineFacts) -> Choice:
        """What is chosen for the budget; printed with the reason.

        Raises:
            PolicyError: The budget needs a profile, or is none.
            CapabilityError: Nothing is chosen for such a model.
        """
        try:
            chosen = load_chooser()(facts, self.budget or {})
        except CapabilityError as error:
            error.add_note("on the command line: --policy NAME")
            raise
        names = " + ".join(policy.name for policy in chosen.policies)
        typer.echo(escape_line(f"chosen: {names}; {chosen.why}"), err=True)
        return chosen

    def complete(self, specs: Sequence[Spec]) -> list[Spec]:
        """Policies with the profile and the budget in their options.

        Raises:
            InputError: None of them takes one.
        """
        specs = [{name: dict(options) for name, options in spec.items()} for spec in specs]
        if self.profile is not None:
            give_profile(specs, find_profile(self.profile), replaced=not self.policy)
        if self.budget is not None:
            give_budget(specs, self.budget, replaced=not self.policy)
        return specs
