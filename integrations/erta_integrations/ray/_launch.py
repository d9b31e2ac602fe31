"""Jobs on a Ray cluster: the entry `ray` of `erta_framework.launchers`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from erta_framework.calibration import Profile
from erta_framework.errors import InputError
from erta_framework.jobs import CalibrationRequest, FabricConfig, JobRequest, Summary
from erta_integrations.ray._actors import Actors
from erta_integrations.ray._crew import Crew
from erta_integrations.ray._job import calibrate_on_crew, sample_on_crew
from erta_integrations.ray._place import check_settings, read_place
from erta_integrations.ray._worker import Surroundings

VARIABLES = ("ERTA_PLUGINS",)
"""Variables of the environment that hold in workers as they do here."""


class RayLauncher:
    """Runs jobs on a Ray cluster; the entry `ray` of `erta_framework.launchers`.

    The cluster is the one that this process is connected to, else the one that `RAY_ADDRESS` names
    or that runs on this machine, else a new one of this machine, which ends with the job.
    """

    def sample(self, request: JobRequest) -> Summary:
        """Run a whole job; the workers make the samples, and this process writes them.

        Raises:
            ConfigError: A setting means nothing to Ray, or the cluster lacks the accelerator.
            InputError: The request does not say what samples, the prompts are wrong, or the folder
                holds another job.
        """
        if request.open is None:
            raise InputError("this request opens no model; use Sampler(launcher='ray').sample_job")
        check_settings(request.fabric)
        with connect():
            return sample_on_crew(hire_crew(request.open, request.fabric), request)

    def calibrate(self, request: CalibrationRequest) -> tuple[Profile, bool]:
        """The profile of all prompts; True, because no other process has it.

        Raises:
            ConfigError: A setting means nothing to Ray, or the cluster lacks the accelerator.
            ErtaError: A share of the prompts cannot be calibrated.
        """
        check_settings(request.fabric)
        with connect():
            crew = hire_crew(request.open, request.fabric)
            return calibrate_on_crew(crew, request), True


@contextmanager
def connect() -> Iterator[None]:
    """Be connected to a cluster; leaves it only where this entered it."""
    if ray.is_initialized():
        yield
        return
    # what goes wrong in a worker is raised here; its output would break the progress bar
    ray.init(log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def hire_crew(make: Callable[[str, str], Any], config: FabricConfig) -> Crew:
    """The workers that settings ask for, which are starting."""
    place = read_place(config, ray.cluster_resources())
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    around = Surroundings(folder=os.getcwd(), variables=variables)
    return Crew(Actors(make, place, around), place.count)
