"""What the code itself lists: checks of the kit, schedulers, pipelines."""

from __future__ import annotations

import functools
import inspect
import warnings

from tables.markdown import render_words


def render_checks() -> str:
    """The checks of the conformance kit with what each asks for."""
    from erta_framework.testing import CHECKS, CHECKS_ON_TOKENS

    rows = [
        [f"`{check.__name__}`", inspect.cleandoc(check.__doc__ or "").splitlines()[0]]
        for check in dict.fromkeys((*CHECKS, *CHECKS_ON_TOKENS))
    ]
    return render_words(["Check", "Holds when"], rows)


def render_schedulers() -> str:
    """What every scheduler allows, with the reason."""
    from erta_integrations.diffusers import CAPABILITIES

    rows = [[f"`{name}`", c.support.value, c.reason] for name, c in sorted(CAPABILITIES.items())]
    return render_words(["Scheduler", "Support", "Why"], rows)


@functools.cache
def render_pipelines() -> str:
    """The pipelines of the test matrix, with what could not be built for it."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within diffusers are not ours to show
        from tiny_pipelines import FAMILIES, NOT_COVERED

        for name, family in FAMILIES.items():
            networks = dict.fromkeys(inner.partition(".")[0] for inner in family.inner)
            pipe = type(family.build())
            rows.append([name, f"`{pipe.__name__}`", ", ".join(networks), str(family.calls)])
    absent = [[name, reason] for name, reason in NOT_COVERED.items()]
    headings = ["Family", "Pipeline", "Networks", "Calls a step"]
    return "\n\n".join(
        [
            render_words(headings, rows),
            "Not among the tests:",
            render_words(["Family", "Why"], absent),
        ]
    )
