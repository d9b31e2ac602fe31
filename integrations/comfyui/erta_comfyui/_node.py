"""The node `ErtaCache`, as ComfyUI describes nodes."""

from __future__ import annotations

from typing import Any

from erta_framework.config import load_config
from erta_framework.errors import ErtaError
from erta_framework.plugins import Engine

from ._cache import cache_model

POLICIES = "skip_policy: {evenly: 12}"
HELP = (
    "What `policies:` of a configuration takes: a policy with its settings, a list of them, or "
    "the path of a configuration file (.yaml)."
)


class ErtaCache:
    """Samples with fewer runs of the network: a model in, a model out."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    CATEGORY = "model_patches/caching"
    DESCRIPTION = "Reuses the outputs of the network at the steps that the policies choose."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The sockets of the node."""
        text = {"default": POLICIES, "multiline": True, "tooltip": HELP}
        return {"required": {"model": ("MODEL",), "policies": ("STRING", text)}}

    @classmethod
    def VALIDATE_INPUTS(cls, policies: str | None = None) -> bool | str:
        """True, or what is wrong with the policies, which ComfyUI shows before anything runs."""
        try:
            if policies is not None:  # None where it comes from another node
                read_policies(policies)
        except (ErtaError, OSError) as error:
            return str(error)
        return True

    def apply(self, model: Any, policies: str) -> tuple[Any]:
        """The model with the policies on it; the given one stays as it was.

        Raises:
            ConfigError: The policies cannot be read.
            ConflictError: The model has such policies already.
        """
        return (cache_model(model, read_policies(policies))[0],)


def read_policies(text: str) -> Engine:
    """An engine from the text of the node.

    Raises:
        ConfigError: A setting is unknown, or the text is no YAML.
        RegistryError: A policy is not installed.

    Example:
        >>> read_policies("skip_policy: {evenly: 12}").policies[0].name
        'skip_policy'
    """
    given = text.strip()
    if given.endswith((".yaml", ".yml")):
        return Engine(load_config(given).policies)
    if not given.startswith(("[", "-")):
        given = f"[{given}]" if given.startswith("{") or ":" not in given else f"[{{{given}}}]"
    return Engine(load_config(None, [f"policies={given}"]).policies)


NODE_CLASS_MAPPINGS = {"ErtaCache": ErtaCache}
NODE_DISPLAY_NAME_MAPPINGS = {"ErtaCache": "Cache steps (erta)"}
