"""Who works on a job, and whether they are still alive."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from erta_framework.files import shorten_name


class Worker:
    """One process that works on a job, known to the others by a file in `workers/`.

    The file's mtime is the worker's newest heartbeat. A worker is dead when

    * its file is gone, because it left,
    * it ran on this host and its process is gone, or
    * its newest heartbeat is older than the lease.

    Ages are differences of two mtimes on the same file system: the other's heartbeat and a
    heartbeat of this worker, made just now. The clocks of the machines therefore need not agree.

    Args:
        folder: The job's folder.
        lease: Seconds without a heartbeat after which a worker is dead.
        host: Where it runs; by default this host. Processes are looked up on the same host only.
        clock: Gives the seconds of a heartbeat instead of the file system, for simulations.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Worker(Path(folder)) as worker:
        ...     worker.is_alive(worker.name)
        True
    """

    def __init__(
        self,
        folder: Path,
        *,
        lease: float = 60.0,
        host: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.folder, self.lease, self._clock = folder / "workers", lease, clock
        self._host = read_host() if host is None else host
        plain = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
        plain = shorten_name(plain, 40)
        self.name = f"{plain}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = self.folder / f"{self.name}.json"
        pid = os.getpid()
        self._facts = json.dumps({"host": self._host, "pid": pid, "started": read_start(pid)})
        self.started = self.beat()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def beat(self) -> float:
        """Give a sign of life, and return its time in seconds of the file system's clock."""
        try:
            self.stamp(self.path)
        except FileNotFoundError:  # the first beat, or somebody tidied the folder up
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self._facts, encoding="utf-8")
            self.stamp(self.path)
        return self.path.stat().st_mtime

    def stamp(self, path: Path) -> None:
        """Set the mtime of a file to now."""
        now = None if self._clock is None else self._clock()
        os.utime(path, None if now is None else (now, now))

    def is_alive(self, name: str, now: float | None = None) -> bool:
        """Whether a worker is still there.

        Args:
            name: Its name.
            now: The time that `beat` returned, where many are asked for at once.
        """
        if name == self.name:
            return True
        path = self.folder / f"{name}.json"
        try:
            newest = path.stat().st_mtime
            facts = json.loads(path.read_text(encoding="utf-8"))
            host, pid, started = facts["host"], int(facts["pid"]), facts["started"]
        except (FileNotFoundError, IsADirectoryError):
            return False
        except (ValueError, TypeError, KeyError, RecursionError):
            host = None  # killed before it had written who it is: its heartbeat decides
        if host == self._host and not is_running(pid, started):
            return False
        return (self.beat() if now is None else now) - newest <= self.lease

    def close(self) -> None:
        """Leave: what this worker still holds may be taken over at once."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def repeat_in_background(
    function: Callable[[], object], seconds: float, *, rest: float = 0.0
) -> Iterator[None]:
    """Call a function again and again from a thread until the context ends.

    A call that raises `OSError` is followed by the next one: shared file systems have hiccups.

    Args:
        function: Called first after `seconds`.
        seconds: Between two calls.
        rest: Least time between two calls as a multiple of what the last one took.
    """
    stop = threading.Event()

    def run() -> None:
        wait = seconds
        while not stop.wait(wait):
            clock = time.monotonic()
            with contextlib.suppress(OSError):
                function()
            wait = max(seconds, rest * (time.monotonic() - clock))

    thread = threading.Thread(target=run, name="erta-job", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@cache
def read_host() -> str:
    """This host, its boot and its process namespace: within these a pid names one process."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # no Linux: the name alone
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def read_start(pid: int) -> str | None:
    """When a process began, in clock ticks; None if it ended, or where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # a zombie has ended: its launcher may collect it only after the whole job
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def is_running(pid: int, start: str | None) -> bool:
    """Whether a process is there; one that began at another time only has its pid."""
    if start is not None:
        return read_start(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and belongs to somebody else
    return True
