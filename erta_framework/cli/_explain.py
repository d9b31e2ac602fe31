"""`erta explain`: what a configuration does, without sampling."""

from __future__ import annotations

from erta_framework.budgets import promise
from erta_framework.cli._options import Settings
from erta_framework.cli._samplers import make_console, make_sampler
from erta_framework.cli._settings import read_settings


def explain(settings: Settings = None) -> None:
    """Show what a configuration does: settings, policies, hooks in call order; samples nothing."""
    config = read_settings(settings)
    sampler = make_sampler(config, config.policies)
    sigmas = sampler.schedule.sigmas
    out = make_console()
    out.print(f"model     {config.model}", markup=False)
    out.print(f"solver    {config.solver!r}", markup=False, soft_wrap=True)
    out.print(f"guidance  {config.guidance!r}", markup=False, soft_wrap=True)
    out.print(f"schedule  {len(sigmas) - 1} steps, sigma {sigmas[0]:.4g} to {sigmas[-1]:.4g}")
    out.print(f"device    {sampler.device.type}, precision {config.precision}")
    out.print(sampler.loop.engine.explain(), markup=False, soft_wrap=True)
    cost = promise(config.policies, len(sigmas) - 1)
    if cost:
        out.print(f"cost      {cost}", markup=False, soft_wrap=True)
