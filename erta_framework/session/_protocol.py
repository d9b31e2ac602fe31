"""The order of a session's verbs: its stages, its open calls, and the words of each refusal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from erta_framework.errors import ProtocolError
from erta_framework.session._call import Call
from erta_framework.session._site import Site


class SessionStage(Enum):
    """Where a session stands; each verb is allowed in some stages only."""

    NEW = "not entered yet"
    BETWEEN = "between steps"
    RUNNING = "within a step"
    SETTLED = "settled, waiting for end(sample)"
    CLOSED = "closed"


@dataclass(slots=True)
class OpenCall:
    """A call that was asked and is not answered yet."""

    call: Call
    started: float


def refuse_stage(verb: str, stage: SessionStage, needed: SessionStage, request_id: str) -> NoReturn:
    """Refuse a verb in a stage that does not allow it.

    Raises:
        ProtocolError: Always.
    """
    raise ProtocolError(
        f"{verb} is not allowed now: the session of request {request_id!r} is {stage.value}, it "
        f"must be {needed.value}"
    )


def check_next(index: int, expected: int, num_steps: int) -> None:
    """Refuse the interval of a step that is not the next one.

    Raises:
        ProtocolError: Names both.
    """
    if index != expected or index >= num_steps:
        raise ProtocolError(
            f"begin got the interval of step {index}, expected step {expected} of {num_steps}; "
            "steps run in order, each once"
        )


def refuse_second(branch: str, index: int) -> NoReturn:
    """Refuse a branch that was answered before in the step.

    Raises:
        ProtocolError: Always.
    """
    raise ProtocolError(
        f"branch {branch!r} was already answered in step {index}; give every evaluation of a step "
        "its own branch name"
    )


def check_inside(site: Site, outer: Site, answered: Collection[Site], index: int) -> None:
    """Refuse a site that does not lie inside the open call, or that was answered before.

    Args:
        site: What is asked for.
        outer: The site of the open call.
        answered: Sites inside calls that were answered in this step.
        index: The step.

    Raises:
        ProtocolError: It is another branch or network, the same place, or an enclosing one.
    """
    if (site.model, site.branch) != (outer.model, outer.branch) or site.path == outer.path:
        raise ProtocolError(
            f"{site} was asked in step {index} before {outer} was answered; call answer() first, "
            "or ask for a place inside it"
        )
    if not site.path or site in answered:
        raise ProtocolError(
            f"{site} was already answered in step {index}, or encloses the call that is open; a "
            "place inside a network is asked once a step"
        )


def refuse_order(site: Site, opened: Sequence[OpenCall], index: int) -> NoReturn:
    """Refuse an answer to a call that is not the one that was asked last.

    Raises:
        ProtocolError: Always.
    """
    last = f"{opened[-1].call.site} comes first" if opened else "nothing was asked"
    raise ProtocolError(
        f"answer got {site} in step {index}, but {last}; calls are answered in the reverse order "
        "of asking"
    )


def refuse_unanswered(site: Site, inner: Site, index: int) -> NoReturn:
    """Refuse an answer while a call that was asked inside it is open.

    Raises:
        ProtocolError: Always.
    """
    raise ProtocolError(
        f"{site} was answered in step {index} before {inner}, which was asked inside it"
    )


def refuse_unsettled(site: Site, index: int) -> NoReturn:
    """Refuse to settle a step while a call is open.

    Raises:
        ProtocolError: Always.
    """
    raise ProtocolError(f"settle in step {index} before {site}, which was asked, was answered")


def refuse_unadjusted(owner: str, index: int) -> NoReturn:
    """Refuse to end a step whose guided prediction a policy wants and has not seen.

    Args:
        owner: The policies that want it.
        index: The step.

    Raises:
        ProtocolError: Always.
    """
    raise ProtocolError(
        f"step {index} ended without adjust, which {owner} needs: pass the guided prediction "
        "through session.adjust before the solver's step"
    )
