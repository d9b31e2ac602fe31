"""`attach_language`: diffusers' `LLaDA2Pipeline`, unmodified, through its model."""

from __future__ import annotations

from typing import Any

from erta_framework.attach import KEEP_TRACES
from erta_framework.config import PolicyLike, build_engine
from erta_framework.errors import CapabilityError, InputError
from erta_integrations.language._pipeline import LanguageAttachment


def attach_language(
    pipe: Any,
    policies: PolicyLike | None = None,
    *,
    mask_id: int | None = None,
    post_steps: int = 17,
    keep_traces: int | None = KEEP_TRACES,
    **options: Any,
) -> LanguageAttachment:
    """Attach policies to an unmodified `LLaDA2Pipeline`, for as long as a `with` block lasts.

    Args:
        pipe: The pipeline; its model takes `past_key_values` as models of transformers do.
        policies: As in `erta_framework.attach`.
        mask_id: The mask; by default that of the pipeline's tokenizer.
        post_steps: At least `max_post_steps + 1` of the call.
        keep_traces: Traces to keep, of the newest blocks, so that a server does not fill its
            memory; None keeps all.
        **options: Options of the policy, where `policies` is a name.

    Raises:
        CapabilityError: The pipeline has no model or scheduler of this kind, or a policy serves
            latents only.
        InputError: `keep_traces` is below 1, or no policies are named: nothing is chosen for
            language models.
        ConflictError: On entering, if something is attached already.

    Warns:
        UnusedWarning: On leaving the block, if every call ran on every token although a rule may
            reuse. When the attachment is dropped, if the pipeline ran and it was never entered.

    Example:
        >>> with attach_language(pipe, "dkvcache", refresh=4) as run:  # doctest: +SKIP
        ...     pipe(input_ids=ids, mask_token_id=156895)
    """
    if policies is None:
        raise InputError(
            f"no policies are named for {type(pipe).__name__}, and for language models none are "
            "chosen; name one, see `erta policies`"
        )
    engine, _ = build_engine(policies, options)
    for part in ("model", "scheduler"):
        if getattr(pipe, part, None) is None:
            raise CapabilityError(
                f"{type(pipe).__name__} has no {part}; the driver is for LLaDA2Pipeline"
            )
    chosen = getattr(pipe, "mask_token_id", None) if mask_id is None else mask_id
    if chosen is None:
        raise CapabilityError(
            f"{type(pipe).__name__} has no tokenizer with a mask token; give mask_id"
        )
    return LanguageAttachment(pipe, engine, int(chosen), post_steps, keep_traces)
