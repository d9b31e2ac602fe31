"""Signs of life: who works on a job, and whether they still do."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path


class Worker:
    """One process that works on a job, known to the others by a file whose mtime is its pulse.

    A worker is dead when its file is gone (it left), when it ran on this host and its process is
    gone, or when its pulse is older than the lease. Pulses are compared with this worker's own,
    which the same file system stamped, so the clocks of machines need not agree.

    Args:
        folder: The job's folder.
        lease: Seconds without a pulse after which a worker is dead.
        host: Where it runs; by default this host. Processes are only looked up on the same host.
        clock: Gives the seconds to stamp instead of the file system's own, for simulations.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Worker(Path(folder)) as worker:
        ...     worker.alive(worker.name)
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
        self.folder = folder / "workers"
        self.lease = lease
        self._clock = clock
        self._host = this_host() if host is None else host
        plain = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
        self.name = f"{plain}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = self.folder / f"{self.name}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._facts = json.dumps(
            {"host": self._host, "pid": os.getpid(), "started": started(os.getpid())}
        )
        self._known: dict[str, dict[str, object]] = {}
        self.path.write_text(self._facts, encoding="utf-8")
        self.started = self.beat()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def beat(self) -> float:
        """Give a sign of life; the time of it, in seconds of the file system's clock."""
        try:
            self.stamp(self.path)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self._facts, encoding="utf-8")
            self.stamp(self.path)
        return self.path.stat().st_mtime

    def stamp(self, path: Path) -> None:
        """Set the mtime of a file to now."""
        now = None if self._clock is None else self._clock()
        os.utime(path, None if now is None else (now, now))

    def alive(self, name: str, now: float | None = None) -> bool:
        """Whether a worker is still there.

        Args:
            name: Its name.
            now: What `beat` gave, where many are asked for at once.
        """
        if name == self.name:
            return True
        path = self.folder / f"{name}.json"
        try:
            pulse = path.stat().st_mtime
            facts = self._known.get(name)
            if facts is None:
                facts = json.loads(path.read_text(encoding="utf-8"))
                self._known[name] = facts
        except FileNotFoundError:
            return False
        except ValueError:  # it was killed before it had written who it is
            facts = {}
        if facts.get("host") == self._host and not running(facts.get("pid"), facts.get("started")):
            return False
        return (self.beat() if now is None else now) - pulse <= self.lease

    def close(self) -> None:
        """Leave: what this worker still holds may be taken over at once."""
        self.path.unlink(missing_ok=True)


class Pulse:
    """Beats for a worker from a thread of its own, six times a lease."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="erta-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._worker.lease / 6):
            try:
                self._worker.beat()
            except OSError:  # the file system hiccups; the next beat may get through
                continue


@cache
def this_host() -> str:
    """This host, start of it and process namespace: where a process number means one process."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass  # no Linux: the name alone
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process began, in ticks; "" if it ended, None where the system does not say."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def running(pid: object, since: object) -> bool:
    """Whether the process of this number is there, and is the one that began then."""
    if not isinstance(pid, int):
        return True  # unknown: its pulse decides
    now = started(pid)
    if now is not None:
        return now == since
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
