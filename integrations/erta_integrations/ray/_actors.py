"""Workers as Ray actors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from erta_integrations.ray._crew import WorkerLostError
from erta_integrations.ray._place import Place
from erta_integrations.ray._worker import JobWorker, Surroundings


class Actors:
    """Starts a `JobWorker` as an actor and talks to it.

    Each has one processor, or one and a GPU. Ray does not restart one that is lost: the crew
    replaces it, wherever there is room.

    Args:
        make: What each worker opens; sent to the cluster once.
        place: The kind of device and the precision.
        surroundings: What workers take over from this process.
    """

    def __init__(
        self, make: Callable[[str, str], Any], place: Place, surroundings: Surroundings
    ) -> None:
        gpus = int(place.accelerator == "cuda")
        self._class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(JobWorker)
        self._arguments = (ray.put(make), place.accelerator, place.precision, surroundings)

    def hire(self) -> Any:
        """Begin to start an actor."""
        return self._class.remote(*self._arguments)

    def ask(self, worker: Any, verb: str, *arguments: Any) -> Any:
        """Call a method of an actor, and wait for the answer.

        Raises:
            WorkerLostError: The actor died, or its answer was lost with its machine.
            Exception: What the method raised.
        """
        try:
            return ray.get(getattr(worker, verb).remote(*arguments))
        except RayTaskError as error:
            # Ray's own exception has the traceback of the worker for its message
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except RayError as error:
            raise WorkerLostError(str(error)) from error

    def dismiss(self, worker: Any) -> None:
        """End an actor, whatever it is doing."""
        ray.kill(worker)
