"""shapes-wan, the trained reference model that ships with erta_framework."""

from erta_integrations.shapes_wan.model import ShapesWan, load_model


def load() -> ShapesWan:
    """The trained reference model, from the weights in the package."""
    return load_model()


__all__ = ["ShapesWan", "load", "load_model"]
