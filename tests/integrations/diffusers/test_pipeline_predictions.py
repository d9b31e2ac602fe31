"""What a pipeline's network predicts, read off its scheduler, and what is reused of it."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest

from erta_framework import Policy, hookimpl
from erta_integrations.diffusers import CAPABILITIES, Support, attach
from erta_integrations.diffusers.pipeline._prediction import read_prediction
from erta_policies.sencache import SenCache, SensitivityProfiler
from tiny_pipelines import FAMILIES


class Facts(Policy):
    """Notes what the driver says of a request."""

    seen: list[Any]

    @hookimpl
    def on_session_start(self, session: Any) -> None:
        self.seen.append(session)


@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        (diffusers.DDIMScheduler(), "epsilon"),
        (diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"), "v_prediction"),
        (diffusers.DDPMScheduler(prediction_type="sample"), "sample"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "velocity"),
        (
            diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True
            ),
            "velocity",
        ),
        (diffusers.CMStochasticIterativeScheduler(), "sample"),
        (diffusers.IPNDMScheduler(), "v_prediction"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_prediction_is_read_off_the_scheduler(scheduler: Any, prediction: str) -> None:
    assert read_prediction(scheduler) == prediction


@pytest.mark.parametrize(
    "name", [n for n, c in CAPABILITIES.items() if c.support is not Support.REFUSED]
)
def test_every_supported_scheduler_has_a_prediction(name: str) -> None:
    cls = getattr(diffusers, name)
    scheduler = object.__new__(cls)
    try:
        parameters = inspect.signature(cls.__init__).parameters
    except (TypeError, ValueError):
        parameters = {}
    kept = parameters.get("prediction_type")
    scheduler._internal_dict = {} if kept is None else {"prediction_type": kept.default}
    if getattr(cls, "_backends", None):
        return  # an extra that is not installed: its settings cannot be read
    assert read_prediction(scheduler) != "", name


def test_a_pipeline_reuses_what_its_network_predicts() -> None:
    for name, reused in (("sd", "output"), ("wan-euler", "residual")):
        seen: list[Any] = []
        family = FAMILIES[name]
        pipe = family.build()
        with attach(pipe, [Facts(seen=seen)]):
            family.run(pipe, 2)
        assert [info.reused for info in seen] == [reused]


def test_a_trunk_takes_the_table_of_the_latent_seam() -> None:
    """SenCache's table is of outputs, and one table serves both seams of a noise network."""
    family = FAMILIES["pixart-sigma"]
    pipe = family.build()
    with attach(pipe, [SensitivityProfiler()]) as run:
        family.run(pipe, 4)
    assert run.profile().fingerprint["reused"] == "output"
    for seam in ("latent", "trunk"):
        with attach(pipe, [SenCache(profile=run.profile())], seam=seam) as again:
            family.run(pipe, 4)
        assert again.traces[0].network_calls > 0
