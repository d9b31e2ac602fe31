"""shapes-wan: a small trained text-to-video model that ships with the package."""

from erta_integrations.shapes_wan.model import ShapesWan, load_model


def load() -> ShapesWan:
    """Load the trained model from the weights in the package."""
    return load_model()


__all__ = ["ShapesWan", "load", "load_model"]
