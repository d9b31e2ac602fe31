"""`LanguageAttachment`: policies on diffusers' `LLaDA2Pipeline`, unmodified, through its model.

The pipeline calls its model on all tokens up to the end of the block that it refines. One request
is one block: its first call runs on every position.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from erta_framework import Engine, Interval, Profile, Session, SessionInfo, Trace
from erta_framework.attach import RequestLog
from erta_framework.errors import CapabilityError, ConflictError, ProtocolError, UnusedWarning
from erta_framework.masked import LONG, Branch, Held, list_signals
from erta_framework.session import make_site
from erta_integrations.language._usage import explain_unentered, explain_unused
from erta_integrations.language._window import (
    TRACKED,
    BlockCall,
    ModelProxy,
    Watched,
    WindowModel,
    check_attends_ahead,
    keep_tokens,
)


class LanguageAttachment:
    """A `LLaDA2Pipeline` with policies attached; made by `attach_language`.

    Attributes:
        engine: The policies that decide.
    """

    def __init__(
        self, pipe: Any, engine: Engine, mask_id: int, post_steps: int, keep_traces: int | None
    ) -> None:
        self._log, self._reused = RequestLog(keep_traces), False
        self.engine, self._pipe, self._post_steps = engine, pipe, post_steps
        self._model = WindowModel(pipe.model, mask_id)
        engine.check(
            list_signals(self._model, TRACKED), type(pipe.scheduler).__name__, kind="tokens"
        )
        self._steps, self._block, self._checked, self._answered = 0, 0, False, False
        self._entered, self._timesteps = False, getattr(pipe.scheduler, "timesteps", None)
        self._session: Session | None = None
        self._watched: Watched | None = None
        self._branch: Branch | None = None

    def __enter__(self) -> Self:
        pipe = self._pipe
        self._entered = True
        if isinstance(pipe.model, ModelProxy) or "set_timesteps" in vars(pipe.scheduler):
            raise ConflictError(
                f"the model or the scheduler of {type(pipe).__name__} is replaced already; leave "
                "that `with` block first"
            )
        original = pipe.scheduler.set_timesteps

        def set_timesteps(
            num_inference_steps: int, device: Any = None, block_length: int | None = None
        ) -> None:
            self._close()
            original(num_inference_steps, device=device, block_length=block_length)
            known = pipe.scheduler.config.block_length if block_length is None else block_length
            self._steps, self._block = num_inference_steps, known

        pipe.scheduler.set_timesteps = set_timesteps
        # past __setattr__, which would write the class of the proxy into the configuration
        vars(pipe)["model"] = ModelProxy(self._model.model, self._answer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(error)
        self.detach()
        fault = explain_unused(self.engine, self.traces, self._pipe)
        if error is None and not self._reused and fault:
            warnings.warn(fault, UnusedWarning, stacklevel=2)

    def __del__(self) -> None:
        # an error in `__init__` speaks for itself
        scheduler = self._pipe.scheduler if not getattr(self, "_entered", True) else None
        if scheduler is not None and getattr(scheduler, "timesteps", None) is not self._timesteps:
            warnings.warn(explain_unentered(self._pipe), UnusedWarning, stacklevel=2)

    def detach(self) -> None:
        """Put the model and the scheduler back and drop all state; safe to call twice."""
        self._close()
        vars(self._pipe.scheduler).pop("set_timesteps", None)
        vars(self._pipe)["model"] = self._model.model

    @property
    def traces(self) -> list[Trace]:
        """One trace for each block, oldest first; the newest `keep_traces`."""
        return self._log.traces

    @property
    def emitted(self) -> list[Profile]:
        """The profiles that profilers emitted, oldest first; many are merged."""
        return self._log.emitted

    @property
    def newest(self) -> Trace | None:
        """The trace of the block that is refined, else of the last one."""
        if self._session is not None:
            return self._session.trace
        return self.traces[-1] if self.traces else None

    def profile(self) -> Profile:
        """Merge the emitted profiles of all blocks so far.

        Raises:
            ProfileError: Nothing was emitted.
        """
        return self._log.profile()

    def explain(self) -> str:
        """The policies, and who answers what."""
        return f"{type(self._pipe).__name__}: {self.engine.explain()}"

    def summary(self) -> str:
        """Tokens computed in every block, with reasons."""
        return self._log.summary() or "no request yet"

    def plot(self, path: str | Path, request: int = -1) -> Path:
        """Refused: every call runs, on some of the tokens."""
        raise CapabilityError(
            "there is no schedule to plot: the network runs at every step, on some of the tokens; "
            "see token_rows of the traces"
        )

    def _answer(self, ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        """Logits `[B, W, V]` of one call of the pipeline."""
        if not self._block:
            raise ProtocolError("the model was called outside of the pipeline; call the pipeline")
        watched = self._watched
        if watched is None or watched.ids.shape != ids.shape:
            watched = self._open(ids, mask, places)
        else:
            self._settle(ids)
            watched.look(ids)
        session, branch = self._session, self._branch
        assert session is not None
        assert branch is not None
        index = watched.index
        if index >= session.info.num_steps:
            raise ProtocolError(
                f"a block takes more than {session.info.num_steps} calls; attach with post_steps "
                f"above {self._post_steps}, at least max_post_steps + 1 of the pipeline"
            )
        sigmas = session.info.sigmas
        session.begin(Interval(index, *sigmas[index : index + 2], *sigmas[index : index + 2]))
        self._model.given = (mask, places)
        site = make_site("model", "cond")
        call = BlockCall(self._model, watched.ids, mask.bool(), branch, watched, session, site)
        try:
            logits = session.forward(site, watched.ids, call)
        except BaseException as error:
            self._close(error)  # whoever catches it holds nothing of this request
            raise
        self._answered = True
        return keep_tokens(logits, branch.fresh, watched.ids)

    def _open(self, ids: Tensor, mask: Tensor, places: Tensor) -> Watched:
        self._close()
        if not self._checked and self.engine.policies:
            check_attends_ahead(self._model.model, ids, mask, places)
            self._checked = True
        count = self._steps + self._post_steps
        sigmas = tuple(1.0 - step / count for step in range(count + 1))
        given = ids != self._model.mask_id
        self._watched = Watched(
            ids.clone(), given, self._model.mask_id, self._block, torch.full_like(ids, -LONG)
        )
        active = "decide" in self.engine.active
        store = self._model.open() if active else None
        self._branch = Branch(store, Held.nothing(ids))
        info = SessionInfo(
            sigmas=sigmas,
            times=sigmas[:-1],
            shape=tuple(ids.shape),
            dtype=ids.dtype,
            device=ids.device,
            model=dict(self._model.fingerprint()),
            kind="tokens",
            solver=type(self._pipe.scheduler).__name__,
            capabilities=list_signals(self._model, TRACKED),
            request_id=f"block-{self._log.closed}",
            time_of=lambda sigma: sigma,
        )
        self._session = self.engine.session(info).__enter__()
        self._session.hold(self._branch)
        return self._watched

    def _settle(self, ids: Tensor) -> None:
        """Close the step of the last call with the tokens that came of it."""
        assert self._session is not None
        self._answered = False
        self._session.settle()
        self._session.end(ids)

    def _close(self, error: BaseException | None = None) -> None:
        session, watched = self._session, self._watched
        self._session = self._branch = self._watched = None
        if session is None:
            return
        try:
            if error is None and watched is not None and self._answered:
                session.settle()
                session.end(watched.ids)
        finally:
            session.__exit__(type(error) if error is not None else None, error, None)
            self._log.add(session)
            self._reused |= session.trace.token_rows < session.trace.token_total
