"""Two small trained image models of other architectures than shapes-wan.

They exist so that what holds for shapes-wan can be checked on networks that it was not found on.
`ShapesFlux` is diffusers' FLUX transformer and predicts the flow-matching velocity; `ShapesUNet` is
Stable Diffusion's kind of UNet and predicts the noise of a variance-preserving process.
"""

from erta_bench.shapes_image._flux import ShapesFlux
from erta_bench.shapes_image._model import ShapesImage, load_model
from erta_bench.shapes_image._unet import ShapesUNet


def load_flux() -> ShapesFlux:
    """Load the trained shapes-flux, from the weights in the package."""
    return load_model(ShapesFlux)


def load_unet() -> ShapesUNet:
    """Load the trained shapes-unet, from the weights in the package."""
    return load_model(ShapesUNet)


__all__ = ["ShapesFlux", "ShapesImage", "ShapesUNet", "load_flux", "load_model", "load_unet"]
