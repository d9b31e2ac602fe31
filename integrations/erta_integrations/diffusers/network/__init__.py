"""Network: see the documentation."""

from erta_integrations.diffusers.network._arguments import (
    bound,
    called,
    compiled_in_place,
    find_networks,
    find_others,
    given_as,
    latents_of,
    pick,
    signature,
    signature_of,
    time_of,
    unwrapped,
)
from erta_integrations.diffusers.network._output_spec import (
    OutputForm,
    Relation,
    ShapeRule,
    as_tensor,
    channel_dim,
    copied,
    read_output,
)
from erta_integrations.diffusers.network._patching import Patch, PatchSet, patched
from erta_integrations.diffusers.network._trial import CallArguments, TrialRunner

__all__ = [
    "CallArguments",
    "OutputForm",
    "Patch",
    "PatchSet",
    "Relation",
    "ShapeRule",
    "TrialRunner",
    "as_tensor",
    "bound",
    "called",
    "channel_dim",
    "compiled_in_place",
    "copied",
    "find_networks",
    "find_others",
    "given_as",
    "latents_of",
    "patched",
    "pick",
    "read_output",
    "signature",
    "signature_of",
    "time_of",
    "unwrapped",
]
