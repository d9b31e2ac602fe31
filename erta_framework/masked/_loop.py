"""The loop that decodes masked tokens, through the same session as every other driver."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from erta_framework.errors import PolicyError
from erta_framework.masked._call import ATTENTION, KEPT_LOGITS, Branch, TokenCall, list_signals
from erta_framework.masked._decoder import Decoder
from erta_framework.masked._decoding import advance_blocks, decode_tokens, list_masked_shares
from erta_framework.masked._model import TokenModel
from erta_framework.masked._positions import Held, Positions, list_tracked
from erta_framework.masked._request import MaskedRequest, MaskedResult, check_request
from erta_framework.masked._schedule import MaskedSchedule
from erta_framework.plugins import Engine
from erta_framework.sampling.guidance import Guidance, NoGuidance
from erta_framework.session import (
    PREFIX,
    Interval,
    Session,
    SessionInfo,
    StepTrace,
    make_site,
)


class MaskedLoop:
    """Decodes masked tokens with any model, schedule and decoder under an engine's policies.

    An interval goes from the masked share before a step to that after it, as the schedule plans it.

    Raises:
        CapabilityError: A policy serves latents only, or needs a signal that is not there.

    Example:
        >>> loop = MaskedLoop(Engine([]), MaskedSchedule(block=8))  # doctest: +SKIP
    """

    def __init__(
        self,
        engine: Engine,
        schedule: MaskedSchedule | None = None,
        decoder: Decoder | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        engine.check_kind(type(self).__name__, "tokens")
        self.engine = engine
        self.schedule = schedule if schedule is not None else MaskedSchedule()
        self.decoder = decoder if decoder is not None else Decoder()
        self.guidance: Guidance = guidance if guidance is not None else NoGuidance()

    def check(self, model: TokenModel) -> frozenset[str]:
        """What this loop offers with a model; refuses an engine that needs more.

        Raises:
            CapabilityError: Names the policy and what is missing.
        """
        offered = list_signals(model, list_tracked(self.decoder))
        self.engine.check(offered, type(self).__name__, kind="tokens")
        return offered

    @torch.no_grad()
    def run(
        self,
        model: TokenModel,
        request: MaskedRequest,
        observe: Callable[[StepTrace], None] | None = None,
        show: Callable[[int, Tensor], None] | None = None,
    ) -> MaskedResult:
        """Decode one batch.

        Args:
            model: Predicts the tokens.
            request: Tokens, where the answer begins, and seeds.
            observe: Called with the trace of each finished step.
            show: Called with each step and the tokens after it, `[B, L]`.

        Raises:
            InputError: The tokens do not fit, or nothing is masked.
            PolicyError: A rule left out positions that had to be decoded.
        """
        check_request(request, model.mask_id)
        generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        positions = self._positions(model, request, generators)
        sigmas = list_masked_shares(positions, self.decoder)
        info = self._info(model, request, sigmas)
        branches: dict[str, Branch] = {}
        post = torch.zeros_like(positions.block)
        with self.engine.session(info) as session:
            for index in range(len(sigmas) - 1):
                logits, fresh = self._predict(session, model, request, positions, branches)
                edited = decode_tokens(self.decoder, positions, logits, fresh, generators)
                session.settle()
                session.end(positions.ids)
                if observe is not None:
                    observe(session.trace.steps[-1])
                if show is not None:
                    show(index, positions.ids)
                post = advance_blocks(self.decoder, positions, edited, post)
                # a fixed schedule ends where it was planned to end, and nothing is read back
                if self._may_end_early and bool(positions.finished.all()):
                    break
        self._check_complete(positions)
        return MaskedResult(positions.ids, session.trace, tuple(session.emitted))

    @property
    def _may_end_early(self) -> bool:
        return self.decoder.threshold is not None or self.decoder.edit_threshold is not None

    def _positions(
        self, model: TokenModel, request: MaskedRequest, generators: list[torch.Generator]
    ) -> Positions:
        ids, start = request.ids, request.start
        answer = ids.shape[1] - start
        if self.decoder.order == "random":
            # for the answer alone, so that padding before it changes nothing
            drawn = torch.stack([torch.rand(answer, generator=g) for g in generators])
        else:
            drawn = -torch.arange(answer, dtype=torch.float32).expand(len(ids), answer)
        priority = functional.pad(drawn.to(ids.device), (start, 0))
        plan = self.schedule.plan(ids[:, start:] == model.mask_id)
        return Positions.of(ids, model.mask_id, plan, start, self.decoder, priority)

    def _predict(
        self,
        session: Session,
        model: TokenModel,
        request: MaskedRequest,
        positions: Positions,
        branches: dict[str, Branch],
    ) -> tuple[Tensor, Tensor | None]:
        """Guided logits `[B, L, V]`, and where they are fresh, `[B, L]`; None for everywhere."""
        sigmas, index = session.info.sigmas, positions.index
        shares = sigmas[index], sigmas[index + 1]
        prompt = torch.zeros_like(positions.given)
        hidden = prompt.clone()
        hidden[:, : request.start] = positions.given[:, : request.start]
        called = self.guidance.branches(prompt, hidden, index, session.info.num_steps)
        session.begin(Interval(index, *shares, *shares), [branch.name for branch in called])
        outputs, fresh = {}, None
        for one in called:
            ids = one.expand(positions.ids).masked_fill(one.condition, model.mask_id)
            seen = None if request.seen is None else one.expand(request.seen)
            held = branches.get(one.name)
            if held is None:
                held = branches[one.name] = self._open(model, ids)
                session.hold(held)
            site = make_site("model", one.name)
            call = TokenCall(model, ids, seen, held, positions, session, site, one.copies)
            outputs[one.name] = session.forward(site, ids, call)
            found = None if held.fresh is None else held.fresh[: len(positions.ids)]
            fresh = found if fresh is None else fresh if found is None else fresh & found
        return self.guidance.combine(outputs), fresh

    def _open(self, model: TokenModel, ids: Tensor) -> Branch:
        if "decide" not in self.engine.active:
            return Branch(None, Held.nothing(ids))
        requires = self.engine.traits.requires
        store = model.open(attention=PREFIX + ATTENTION in requires)
        return Branch(store, Held.nothing(ids), keeps_logits=KEPT_LOGITS in requires)

    def _check_complete(self, positions: Positions) -> None:
        left = int((positions.masked & ~positions.given).sum())
        if left:
            deciders = " / ".join(map(repr, self.engine.implementers("decide"))) or "the schedule"
            raise PolicyError(
                f"{left} positions are still masked after {positions.index} steps: {deciders} "
                "left out positions that the decoder needed; let the rule compute at least the "
                "positions that are decoded next"
            )

    def _info(
        self, model: TokenModel, request: MaskedRequest, sigmas: tuple[float, ...]
    ) -> SessionInfo:
        return SessionInfo(
            sigmas=sigmas,
            times=sigmas[:-1],
            shape=tuple(request.ids.shape),
            dtype=request.ids.dtype,
            device=request.ids.device,
            branches=self.guidance.names,
            model=dict(model.fingerprint()),
            kind="tokens",
            solver=f"MaskedLoop({self.schedule!r}, {self.decoder!r})",
            guidance=repr(self.guidance),
            capabilities=self.check(model),
            request_id=request.request_id,
            time_of=lambda sigma: sigma,
        )
