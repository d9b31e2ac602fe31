"""Whether an interrupt came from the keyboard or from code that raises one."""

from __future__ import annotations

import dis
import signal


def is_from_keyboard(error: BaseException) -> bool:
    """Whether an exception is ctrl-C, which must end the program wherever it strikes.

    Python raises it in the midst of whatever runs; a plugin has a `raise` for it.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    code = trace.tb_frame.f_code
    handler = signal.getsignal(signal.SIGINT)
    if code is getattr(handler, "__code__", None):  # a handler of the program's own
        return True
    return dis.opname[code.co_code[trace.tb_lasti]] != "RAISE_VARARGS"
