"""Which policies can stand beside which, asked of the code."""

from __future__ import annotations

import functools

from tables.markdown import escape_cell, render_words


@functools.cache
def render_combinations() -> str:
    """Which policies can stand beside which: parts, refused pairs, and what was left out."""
    from erta_framework.calibration import Profile
    from erta_framework.compatibility import OWN, DriverOffer, make_overview
    from erta_framework.plugins import Engine, Policy
    from erta_framework.session import Seam
    from erta_integrations.diffusers import attach
    from erta_integrations.diffusers.network import find_trial_capabilities
    from erta_integrations.diffusers.pipeline import capabilities
    from erta_integrations.diffusers.trunk import discover, find_text_signals, find_trunk_signals
    from tiny_pipelines import FAMILIES

    family = FAMILIES["wan-euler"]
    pipe = family.build()

    def calibrated(profiler: Policy) -> Profile:
        seam = Seam.TRUNK if Engine([profiler]).signals else Seam.LATENT
        with attach(pipe, [profiler], seam=seam) as run:
            family.run(pipe, steps=8)
        return run.profile()

    inner = find_trunk_signals(pipe.transformer, discover(pipe.transformer))
    euler = capabilities(pipe.scheduler) | find_text_signals([pipe.transformer])
    whole = euler | find_trial_capabilities({"transformer": pipe.transformer})
    found = make_overview(
        calibrated,
        (
            *OWN,
            DriverOffer("pipeline", whole),
            DriverOffer("pipeline, trunk", euler | inner, Seam.TRUNK),
        ),
    )
    names = [driver.name for driver in found.drivers]
    rows = [
        [role.value, f"`{name}`", *("yes" if each else "no" for each in served)]
        for role, name, served in found.rows()
    ]
    counts = [found.counts(driver) for driver in found.drivers]
    rows.append(["", "combinations allowed", *(f"{a} of {made}" for a, made in counts)])
    pairs = [
        [" + ".join(f"`{name}`" for name in chosen), "; ".join(where), escape_cell(reason)]
        for chosen, where, reason in found.refused()
    ]
    absent = [[f"`{name}`", escape_cell(reason)] for name, reason in found.absent.items()]
    parts = [render_words(["Part", "Policy", *names], rows)]
    if pairs:
        parts += [
            "Not together, although each may stand alone:",
            render_words(["Policies", "Where", "Why"], pairs),
        ]
    if absent:
        parts += [
            "Not among them, since they cannot be made without a setting of yours:",
            render_words(["Policy", "Why"], absent),
        ]
    return "\n\n".join(parts)
