"""Networks of a pipeline: finds them, reads their arguments and outputs, and patches them.

Nothing here knows of steps, requests or policies; those are the business of `pipeline`.
"""

from erta_integrations.diffusers.network._arguments import (
    bind_arguments,
    find_argument,
    find_argument_place,
    find_latents,
    find_timestep,
    first_of,
    get_network_signature,
    get_signature,
    to_call,
    unwrap_class,
)
from erta_integrations.diffusers.network._batch_axis import (
    explain_undivided,
    find_row_selector,
    merge_rows,
)
from erta_integrations.diffusers.network._components import (
    find_networks,
    find_undriven_networks,
    is_compiled_in_place,
)
from erta_integrations.diffusers.network._distilled import (
    check_guidance,
    find_guidance_capabilities,
)
from erta_integrations.diffusers.network._output_spec import (
    OutputSpec,
    Relation,
    ShapeRule,
    as_tensor,
    copy_value,
    find_channel_dim,
    read_output,
)
from erta_integrations.diffusers.network._patching import Patch, PatchSet, is_patched, restore
from erta_integrations.diffusers.network._trial import CallArguments, TrialRunner
from erta_integrations.diffusers.network._trial_checks import check_trials, find_trial_capabilities

__all__ = [
    "CallArguments",
    "OutputSpec",
    "Patch",
    "PatchSet",
    "Relation",
    "ShapeRule",
    "TrialRunner",
    "as_tensor",
    "bind_arguments",
    "check_guidance",
    "check_trials",
    "copy_value",
    "explain_undivided",
    "find_argument",
    "find_argument_place",
    "find_channel_dim",
    "find_guidance_capabilities",
    "find_latents",
    "find_networks",
    "find_row_selector",
    "find_timestep",
    "find_trial_capabilities",
    "find_undriven_networks",
    "first_of",
    "get_network_signature",
    "get_signature",
    "is_compiled_in_place",
    "is_patched",
    "merge_rows",
    "read_output",
    "restore",
    "to_call",
    "unwrap_class",
]
