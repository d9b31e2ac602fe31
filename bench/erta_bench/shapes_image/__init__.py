"""Two trained image models of other architectures than shapes-wan, shipped with the package."""

from erta_bench.shapes_image.model import ShapesFlux, ShapesUNet, load_model


def load_flux() -> ShapesFlux:
    """The trained shapes-flux, from the weights in the package."""
    return load_model(ShapesFlux)


def load_unet() -> ShapesUNet:
    """The trained shapes-unet, from the weights in the package."""
    return load_model(ShapesUNet)


__all__ = ["ShapesFlux", "ShapesUNet", "load_flux", "load_model", "load_unet"]
