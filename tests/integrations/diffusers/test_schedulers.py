"""Every scheduler of diffusers has an entry in the capability table, and the entry is true."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from erta_framework.errors import CapabilityError
from erta_framework.session import STOCHASTIC
from erta_integrations.diffusers import CAPABILITIES, Support, attach
from erta_integrations.diffusers.pipeline import capabilities
from erta_integrations.diffusers.pipeline._capabilities import find_capability
from erta_integrations.diffusers.pipeline._schedulers import find_first_index, read_schedule
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES

EXPORTED = sorted(
    name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")
)
REFUSED = sorted(name for name, entry in CAPABILITIES.items() if entry.support is Support.REFUSED)


def optional(name: str) -> Any:
    """A scheduler class; skips where it needs a package that is not installed."""
    cls = getattr(diffusers, name)
    if hasattr(cls, "_backends"):
        pytest.skip(f"{name} needs {cls._backends}")
    return cls


def test_the_table_holds_exactly_what_diffusers_exports() -> None:
    assert sorted(CAPABILITIES) == EXPORTED


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_scheduler_says_why(name: str) -> None:
    scheduler = object.__new__(optional(name))
    with pytest.raises(CapabilityError, match=CAPABILITIES[name].reason):
        find_capability(scheduler)


@pytest.mark.parametrize("name", sorted(set(EXPORTED) - set(REFUSED)))
def test_only_entries_with_time_warp_offer_a_first_order_step(name: str) -> None:
    scheduler = object.__new__(optional(name))
    expected = CAPABILITIES[name].support is Support.TIME_WARP
    assert ("first_order" in offered(scheduler)) is expected


def offered(scheduler: Any) -> frozenset[str]:
    scheduler._internal_dict = {}
    return capabilities(scheduler)


def test_a_stochastic_flow_scheduler_offers_no_time_warp() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    assert capabilities(scheduler) == {STOCHASTIC}


def test_what_is_no_scheduler_is_refused() -> None:
    with pytest.raises(CapabilityError, match="object has no step and no set_timesteps"):
        find_capability(object())


def test_a_subclass_has_the_entry_of_its_base() -> None:
    class Own(diffusers.UniPCMultistepScheduler):  # type: ignore[misc, name-defined]
        pass

    assert find_capability(Own()) is CAPABILITIES["UniPCMultistepScheduler"]


@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("unit", [lambda t: t, lambda t: t / 1000, lambda t: (1000 - t) / 1000])
def test_the_first_step_is_read_from_what_the_network_is_told(begin: int, unit: Any) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    schedule = read_schedule(scheduler)
    told = unit(scheduler.timesteps[begin]).expand(2)
    assert find_first_index(scheduler, told, schedule) == begin
    scheduler.set_begin_index(4)
    assert find_first_index(scheduler, told, schedule) == 4


STEPPABLE = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "IPNDMScheduler": {},
    "EDMEulerScheduler": {},
}


@pytest.mark.parametrize("name", STEPPABLE)
def test_caching_runs_under_each_scheduler_that_a_unet_accepts(name: str) -> None:
    family = FAMILIES["sd"]
    pipe = family.build()
    pipe.scheduler = optional(name)(**STEPPABLE[name])
    torch.manual_seed(0)
    plain = family.run(pipe)
    steps = len(pipe.scheduler.timesteps)
    with attach(pipe, [SkipPolicy(every=1)]) as run:
        torch.manual_seed(0)
        assert torch.equal(family.run(pipe), plain)
        torch.manual_seed(0)
        assert torch.equal(family.run(pipe), plain)
    assert [trace.network_calls for trace in run.traces] == [steps, steps]
    with attach(pipe, [SkipPolicy(steps=(0, 2, steps - 1))]) as run:
        torch.manual_seed(0)
        assert not torch.equal(family.run(pipe), plain)
    assert run.traces[0].computed_steps == (0, 2, steps - 1)
