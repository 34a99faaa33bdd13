"""Image descriptors: DAISY on a dense grid over the photographs that scikit-image ships.

A descriptor has histograms of gradient directions around a point of a grayscale image, as SIFT has: 128
components, none negative, of unit length. Every image is described at several sizes. Points around which
nothing changes are left out: their descriptors would be noise.

Shape suffixes: H image rows, W image columns, N descriptors, D vector dimension.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import RQMoEError
from rqmoe_store.evaluation.machine import require_bench

IMAGES = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coins.png", "grass.png"),
    *("gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png"),
    *("retina.jpg", "rocket.jpg"),
)
"""Images whose descriptors are kept."""

QUERY_IMAGES = ("coffee.png", "motorcycle_right.png")
"""Images whose descriptors are queries: a scene that is not among the others, and one of them from another
point of view."""

SCALES = (1.0, 0.8, 0.63, 0.5)
STEP = 3
"""Pixels from one point of the grid to the next."""

_SHAPE = {"radius": 15, "rings": 3, "histograms": 5, "orientations": 8}
_STRIP_ROWS = 256
"""Rows of an image described at a time, so that memory does not follow from its size."""
_LEAST_LENGTH = 0.02
"""Least length of a descriptor before it is scaled to 1, as a multiple of the longest of its image."""


def describe_images(names: tuple[str, ...]) -> Iterator[tuple[str, Float32Array]]:
    """Descriptors (N, D) of the images at all scales, block by block, each with its image's name.

    Raises:
        RQMoEError: the extra `bench` is not installed, or scikit-image no longer ships one of the images.
    """
    require_bench("skimage")
    from skimage.transform import rescale

    for name in names:
        image_HW = _grayscale(name)
        for scale in SCALES:
            scaled_HW = image_HW if scale == 1 else rescale(image_HW, scale, anti_aliasing=True)
            yield from ((name, described_ND) for described_ND in _descriptors(scaled_HW))


def _grayscale(name: str) -> Any:
    import skimage
    from skimage.color import rgb2gray
    from skimage.io import imread
    from skimage.util import img_as_float32

    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise RQMoEError(
            f"scikit-image {version('scikit-image')} has no image {name}. Install the version that "
            "constraints.txt names."
        )
    image = img_as_float32(imread(path))
    return image if image.ndim == 2 else rgb2gray(image[..., :3])


def _descriptors(image_HW: Any) -> Iterator[Float32Array]:
    from skimage.feature import daisy

    # Strips overlap by what descriptors look at, so that there are as many of them as of the whole image.
    margin, strips = _SHAPE["radius"], []
    for top in range(0, image_HW.shape[0] - 2 * margin, _STRIP_ROWS // STEP * STEP):
        strip_HW = image_HW[top : top + _STRIP_ROWS // STEP * STEP + 2 * margin]
        if strip_HW.shape[0] > 2 * margin:
            found = daisy(strip_HW, step=STEP, normalization="off", **_SHAPE)
            strips.append(found.reshape(-1, found.shape[-1]).astype(np.float32))
    lengths = [np.linalg.norm(strip_ND, axis=1) for strip_ND in strips]
    least = _LEAST_LENGTH * max(float(found_N.max(initial=0)) for found_N in lengths)
    for strip_ND, lengths_N in zip(strips, lengths, strict=True):
        kept_N = lengths_N > least
        yield strip_ND[kept_N] / lengths_N[kept_N, None]
