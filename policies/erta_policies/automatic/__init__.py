"""Chooses policies for a pipeline that nobody named any for: `erta.enable(pipe)` asks here.

Published constants come first, if the pipeline's model is one that they were published for; else a
rule that needs no profile. Nothing is chosen for models that make only a few steps.
"""

from erta_policies.automatic._choose import choose
from erta_policies.automatic._few_steps import refuse_few_steps
from erta_policies.automatic._models import KnownModel, Recognised, list_known, recognise

__all__ = [
    "KnownModel",
    "Recognised",
    "choose",
    "list_known",
    "recognise",
    "refuse_few_steps",
]
