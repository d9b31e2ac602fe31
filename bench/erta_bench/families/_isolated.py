"""A function in a process of its own, with a time limit.

Processes are forked from one that has everything imported already, where the system can fork; so a
method that changes classes, hangs or crashes reaches no other.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from typing import Any

WARM = "erta_bench.families._warm"


class GoneError(Exception):
    """The process gave no answer; the message says why."""


def run_isolated(function: Callable[..., Any], *args: Any, timeout: float) -> Any:
    """Call a function of a module in a new process.

    Args:
        function: Importable by name; raises nothing that matters.
        args: Its arguments.
        timeout: Seconds until the process is ended.

    Raises:
        GoneError: It took too long or ended without an answer.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = (
        multiprocessing.get_context("forkserver") if forks else multiprocessing.get_context("spawn")
    )
    if forks:
        context.set_forkserver_preload([WARM])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=send_answer, args=(sending, function, args), daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(timeout):
            raise GoneError(f"no answer within {timeout:g} s")
        return receiving.recv()
    except EOFError:
        process.join()
        raise GoneError(f"the process ended with exit code {process.exitcode}") from None
    finally:
        receiving.close()
        if process.is_alive():
            process.kill()
        process.join()


def send_answer(sending: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Send what the function returns; whatever libraries print is dropped."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        sending.send(function(*args))
    sending.close()
