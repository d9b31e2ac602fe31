"""One request: the session that drivers call, the records that policies see, and the trace."""

from erta_framework.session._answerer import compute_default
from erta_framework.session._call import Call, Memory
from erta_framework.session._computation import Computation
from erta_framework.session._decisions import Answer, Compute, Decision, Reuse
from erta_framework.session._evaluation import Evaluation, Evaluations, Needs, Stamp
from erta_framework.session._function_network import FunctionNetwork
from erta_framework.session._guided import GUIDED, Guided
from erta_framework.session._history import History
from erta_framework.session._network import (
    UNDIVIDED,
    Network,
    PlannedNetwork,
    TokenNetwork,
    TrialPlan,
)
from erta_framework.session._selection import drop_partial, get_stamp, merge_rows, select_rows
from erta_framework.session._session import Session
from erta_framework.session._signals import (
    AHEAD,
    PREFIX,
    PROMPT,
    PROMPT_MASK,
    TEXT,
    NetworkSignal,
    as_tokens,
    find_signals,
    find_text_tokens,
)
from erta_framework.session._site import TRUNK, Seam, Site, make_site
from erta_framework.session._state import StateStore
from erta_framework.session._step import (
    DDIM_LEVELS,
    PLANNED,
    RESIZED,
    STOCHASTIC,
    TRIAL,
    TWO_BRANCHES,
    Interval,
    Kind,
    Reused,
    SessionInfo,
    Step,
)
from erta_framework.session._trace import Trace
from erta_framework.session._trace_records import CallTrace, StepTrace
from erta_framework.session._trace_strip import render_strip
from erta_framework.session._trace_summary import explain_reason

__all__ = [
    "AHEAD",
    "DDIM_LEVELS",
    "GUIDED",
    "PLANNED",
    "PREFIX",
    "PROMPT",
    "PROMPT_MASK",
    "RESIZED",
    "STOCHASTIC",
    "TEXT",
    "TRIAL",
    "TRUNK",
    "TWO_BRANCHES",
    "UNDIVIDED",
    "Answer",
    "Call",
    "CallTrace",
    "Computation",
    "Compute",
    "Decision",
    "Evaluation",
    "Evaluations",
    "FunctionNetwork",
    "Guided",
    "History",
    "Interval",
    "Kind",
    "Memory",
    "Needs",
    "Network",
    "NetworkSignal",
    "PlannedNetwork",
    "Reuse",
    "Reused",
    "Seam",
    "Session",
    "SessionInfo",
    "Site",
    "Stamp",
    "StateStore",
    "Step",
    "StepTrace",
    "TokenNetwork",
    "Trace",
    "TrialPlan",
    "as_tokens",
    "compute_default",
    "drop_partial",
    "explain_reason",
    "find_signals",
    "find_text_tokens",
    "get_stamp",
    "make_site",
    "merge_rows",
    "render_strip",
    "select_rows",
]
