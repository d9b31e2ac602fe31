"""`erta explain`: what a configuration does, without sampling."""

from __future__ import annotations

from erta_framework.budgets import promise
from erta_framework.cli._options import ConfigOptions
from erta_framework.cli._policy_options import PolicyOptions
from erta_framework.cli._samplers import make_sampler
from erta_framework.config import MaskedRunConfig
from erta_framework.console import make_console
from erta_framework.text import escape_line


def explain(config_options: ConfigOptions, policies: PolicyOptions) -> None:
    """Show what a configuration does: settings, policies, hooks in call order; samples nothing."""
    config = config_options.read_run()
    if isinstance(config, MaskedRunConfig):
        explain_tokens(config)
        return
    config = policies.apply(config)
    sampler = make_sampler(config, config.policies)
    sigmas = sampler.schedule.sigmas
    out = make_console()
    out.print(escape_line(f"model     {config.model}"))
    out.print(f"solver    {config.solver!r}", soft_wrap=True)
    out.print(f"guidance  {config.guidance!r}", soft_wrap=True)
    out.print(f"schedule  {len(sigmas) - 1} steps, sigma {sigmas[0]:.4g} to {sigmas[-1]:.4g}")
    out.print(f"device    {sampler.device.type}, precision {config.precision}")
    out.print(sampler.loop.engine.explain(), soft_wrap=True)
    cost = promise(config.policies, len(sigmas) - 1)
    if cost:
        out.print(f"cost      {cost}", soft_wrap=True)


def explain_tokens(config: MaskedRunConfig) -> None:
    """The same of a configuration that decodes tokens."""
    sampler = config.make_sampler()
    out = make_console()
    out.print(escape_line(f"model     {config.model}"))
    out.print(f"decoder   {config.decoder!r}", soft_wrap=True)
    out.print(f"guidance  {config.guidance!r}", soft_wrap=True)
    out.print(f"schedule  {sampler.loop.schedule!r}", soft_wrap=True)
    out.print(f"device    {sampler.device.type}")
    out.print(sampler.loop.engine.explain(), soft_wrap=True)
