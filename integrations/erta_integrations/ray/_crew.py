"""A crew of workers that come and go: a lost one is replaced, and what it did is done again."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any, Protocol

from erta_framework.errors import ErtaError
from erta_integrations.fabric.jobs import is_device_lost

log = logging.getLogger(__name__)
TRIES = 3
"""Workers that one request, or one place of the crew, may cost before it is given up."""
PATIENCE = 30.0
"""Seconds without a free worker after which it is said that none is there."""


class WorkerLostError(ErtaError):
    """The process of a worker ended, or its device is unusable."""


class Stopped(BaseException):
    """The crew is gone; whoever waits for a worker leaves, and fails no sample for it.

    A `BaseException`, because a job takes any `Exception` for that of the sample in its hands.

    Attributes:
        error: Why no worker is left; None if the crew was dismissed.
    """

    def __init__(self, error: Exception | None) -> None:
        super().__init__(str(error))
        self.error = error


class Workers(Protocol):
    """Starts workers and talks to them; any object may stand for a worker."""

    def hire(self) -> Any:
        """Begin to start a worker, and return without waiting for it."""
        ...

    def ask(self, worker: Any, verb: str, *arguments: Any) -> Any:
        """Call a method of a `JobWorker`, and wait for the answer.

        Raises:
            WorkerLostError: Its process ended before it could answer.
            Exception: What the method raised.
        """
        ...

    def dismiss(self, worker: Any) -> None:
        """End a worker, whatever it is doing."""
        ...


class Crew:
    """Workers, each of which serves one request at a time; safe to ask from many threads.

    Work begins when the first worker is there. Those that start later, or again, join then.

    Args:
        workers: Starts them.
        count: How many.

    Example:
        >>> with Crew(workers, 2) as crew:  # doctest: +SKIP
        ...     crew.ask("known")
        ('steps', 'sigmas', 'guidance', 'policies')
    """

    def __init__(self, workers: Workers, count: int) -> None:
        self.count = count
        self._workers = workers
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._hired: list[Any] = []
        self._places, self._closed = count, False
        self._problem: Exception | None = None
        for _ in range(count):
            self._fill_place()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if isinstance(error, Stopped) and error.error is not None:
            raise error.error

    def ask(self, verb: str, *arguments: Any) -> Any:
        """Have the next free worker do something; where it is lost, the next one does it.

        Raises:
            WorkerLostError: As many workers as one request may cost were lost over it.
            Stopped: No worker is left.
            Exception: What the worker raised.
        """
        for _ in range(TRIES):
            worker = self._take()
            try:
                answer = self._workers.ask(worker, verb, *arguments)
            except WorkerLostError as error:
                lost: Exception = error
            except Exception as error:
                if not is_device_lost(error):
                    self._free.put(worker)
                    raise
                lost = error
            else:
                self._free.put(worker)
                return answer
            self._replace(worker, lost)
        raise WorkerLostError(
            f"{TRIES} workers were lost over the same request, the last one by: {lost}. It may "
            "need more memory than a worker has; --resume tries it again"
        ) from lost

    def close(self) -> None:
        """End all workers; whoever waits for one is stopped."""
        with self._lock:
            self._closed = True
            hired, self._hired = self._hired, []
        for worker in hired:
            self._workers.dismiss(worker)
        self._free.put(None)

    # ------------------------------------------------------------------ places of the crew
    def _take(self) -> Any:
        """The next free worker."""
        while True:
            try:
                worker = self._free.get(timeout=PATIENCE)
            except queue.Empty:
                log.warning("no worker is free yet; %d are starting or at work", self._places)
                continue
            if worker is not None:
                return worker
            self._free.put(None)  # for the next one that waits
            raise Stopped(None if self._closed else self._problem)

    def _replace(self, worker: Any, lost: Exception) -> None:
        with self._lock:
            if self._closed:
                raise Stopped(None)
            self._hired.remove(worker)
        log.warning("a worker was lost and is replaced: %s", str(lost).strip().split("\n")[0])
        self._workers.dismiss(worker)
        self._fill_place()

    def _fill_place(self) -> None:
        """Start a worker, and wait for it in a thread."""
        threading.Thread(target=self._open_worker, name="erta-crew", daemon=True).start()

    def _open_worker(self) -> None:
        """Start a worker; it is free once it has opened the model."""
        for _ in range(TRIES):
            worker = self._workers.hire()
            with self._lock:
                closed = self._closed
                if not closed:
                    self._hired.append(worker)
            if closed:
                self._workers.dismiss(worker)
                return
            try:
                self._workers.ask(worker, "open")
            except Exception as error:
                problem = error
            else:
                self._free.put(worker)
                return
            with self._lock:
                if self._closed:
                    return
                self._hired.remove(worker)
            self._workers.dismiss(worker)
            if not isinstance(problem, WorkerLostError):
                break
        self._give_up_place(problem)

    def _give_up_place(self, problem: Exception) -> None:
        """Go on with one worker less; the last one's problem stops the crew."""
        with self._lock:
            self._places -= 1
            self._problem, left = problem, self._places
        if left:
            log.warning("a worker cannot open the model, %d go on: %s", left, problem)
        else:
            self._free.put(None)
