"""Images as a network sees them: scaled, cut, mirrored, turned, normalised, and the exact matrix of all that.

Image coordinates are continuous: pixel (column i, row j) covers [i, i+1) x [j, j+1) and its centre is at +0.5, so the
pixel that shows a point (u, v) is (floor(u), floor(v)). In these, scaling is a product, mirroring is u' = width - u,
and the turn is about (width / 2, height / 2): the matrices of the published BEVFusion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

_SUPPORT = 2
"""Reach of the bicubic filter, in pixels of the coarser of its two grids."""


@dataclass(frozen=True)
class ImageConfig:
    """How images are cut to size, and how they vary in training. The defaults are BEVFusion's published ones.

    Attributes:
        final_size: Height and width that the network sees [pixels].
        resize_range: Scale of training images, from U(low, high), the same in both directions.
        test_resize: Scale in evaluation.
        rotation: Turn of training images by an angle from U(-rotation, rotation), radians.
        flip: Probability of mirroring a training image left to right.
        mean: Of red, green and blue in [0, 1], subtracted (ImageNet's).
        std: Of red, green and blue in [0, 1], divided by (ImageNet's).
    """

    final_size: tuple[int, int] = (256, 704)
    resize_range: tuple[float, float] = (0.38, 0.55)
    test_resize: float = 0.48
    rotation: float = math.radians(5.4)
    flip: float = 0.5
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        low, high = self.resize_range
        for name, value, holds, contract in (
            ("final_size", self.final_size, min(self.final_size) > 0, "two sizes above 0"),
            ("resize_range", self.resize_range, 0 < low <= high < math.inf, "0 < low <= high"),
            ("test_resize", self.test_resize, 0 < self.test_resize < math.inf, "above 0"),
            ("rotation", self.rotation, 0 <= self.rotation <= math.pi, "in [0, pi] radians"),
            ("flip", self.flip, 0 <= self.flip <= 1, "a probability"),
            ("std", self.std, min(self.std) > 0, "three numbers above 0"),
        ):
            if not holds:
                raise ValueError(f"ImageConfig: {name} must be {contract}, got {value}.")


@dataclass(frozen=True)
class ImagePlacement:
    """Where a recorded image lands in the network's: scaled, cut out, mirrored, turned, in this order.

    Attributes:
        scale: Factor of both directions.
        left: First column of the scaled image that is kept; negative for black columns before it.
        top: First row of the scaled image that is kept; negative for black rows above it.
        flip: Whether it is mirrored left to right.
        rotation: Turn about the middle of the cut, counter-clockwise as seen, radians.
        size: Height and width of the result.
    """

    scale: float
    left: int
    top: int
    flip: bool
    rotation: float
    size: tuple[int, int]

    def matrix(self) -> Matrix:
        """(4, 4) float64 `image_aug`: `[u', v', depth, 1] = image_aug @ [u, v, depth, 1]`."""
        cut = np.diag([self.scale, self.scale, 1.0, 1.0])
        cut[:2, 3] = -self.left, -self.top
        return self._after_cut() @ cut

    def _after_cut(self) -> Matrix:
        """(4, 4) mirror and turn of the cut."""
        height, width = self.size
        mirror, turn = np.eye(4), np.eye(4)
        if self.flip:
            mirror[0, 0], mirror[0, 3] = -1.0, width
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        turn[:2, :2] = [[cos, sin], [-sin, cos]]
        middle = np.array([width / 2, height / 2])
        turn[:2, 3] = middle - turn[:2, :2] @ middle
        return turn @ mirror

    def apply(self, image: Pixels) -> Pixels:
        """Show an image through this placement.

        It is scaled by a bicubic filter, widened when it shrinks, straight to the cut, at the exact fraction of a
        pixel that `matrix` says; a turn then interpolates bilinearly. Where the recorded image has nothing, black.

        Args:
            image: (H, W, 3) uint8.

        Returns:
            (*size, 3) uint8.
        """
        height, width = self.size
        if self.rotation == 0:
            shown, left, top = self._scaled(image, (0, 0, width, height))
            result = np.zeros((height, width, 3), dtype=np.uint8)
            if shown is not None:
                result[top : top + shown.height, left : left + shown.width] = np.asarray(shown)
            return result[:, ::-1] if self.flip else result
        inverse = np.linalg.inv(self._after_cut())
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]])
        reach = corners @ inverse[:2, :2].T + inverse[:2, 3]
        low, high = np.floor(reach.min(0)).astype(int) - 1, np.ceil(reach.max(0)).astype(int) + 1
        shown, left, top = self._scaled(image, (*low, *high))
        if shown is None:
            return np.zeros((height, width, 3), dtype=np.uint8)
        inverse[:2, 3] -= left, top
        coefficients = (*inverse[0, [0, 1, 3]], *inverse[1, [0, 1, 3]])
        turned = shown.transform(
            (width, height),
            Image.Transform.AFFINE,
            coefficients,
            resample=Image.Resampling.BILINEAR,
        )
        return np.asarray(turned)

    def _scaled(self, image: Pixels, window: Sequence[int]) -> tuple[Image.Image | None, int, int]:
        """Scale what is inside a window of the cut's columns and rows (left, top, right, bottom).

        Returns:
            The part of the window that the image fills (None: nothing), and the first column and row of it.
        """
        ranges = []
        for axis, offset in ((1, self.left), (0, self.top)):
            length = image.shape[axis] * self.scale - offset
            first = max(int(window[1 - axis]), -offset)
            last = min(int(window[3 - axis]), math.floor(length + 1e-6))
            ranges.append(
                (first, last, (first + offset) / self.scale, (last + offset) / self.scale)
            )
        (left, right, x0, x1), (top, bottom, y0, y1) = ranges
        if right <= left or bottom <= top:
            return None, left, top
        # Only rows that the filter reaches are handed over: half of a road scene is cut off.
        reach = math.ceil(_SUPPORT * max(1.0, 1 / self.scale)) + 1
        first_row = max(math.floor(y0) - reach, 0)
        rows = image[first_row : min(math.ceil(y1) + reach, len(image))]
        box = (x0, y0 - first_row, min(x1, image.shape[1]), min(y1 - first_row, len(rows)))
        shown = Image.fromarray(np.ascontiguousarray(rows)).resize(
            (right - left, bottom - top), Image.Resampling.BICUBIC, box=box
        )
        return shown, left, top


def draw_placement(
    config: ImageConfig, image_size: tuple[int, int], rng: np.random.Generator | None
) -> ImagePlacement:
    """Choose where an image lands: its lower edge always on the lower edge of the result, as the road is there.

    Args:
        config: Sizes and ranges.
        image_size: Height and width of the recorded image.
        rng: Gives scale, sideways place, mirroring and turn, four numbers whatever the config; None for
            evaluation: `test_resize`, in the middle, upright.

    Returns:
        The placement.
    """
    height, width = config.final_size
    scale, place, flip, rotation = config.test_resize, 0.5, False, 0.0
    if rng is not None:
        scale = rng.uniform(*config.resize_range)
        place = rng.random()
        flip = bool(rng.random() < config.flip)
        rotation = rng.uniform(-config.rotation, config.rotation)
    scaled_height, scaled_width = (int(size * scale) for size in image_size)
    left = int(place * max(0, scaled_width - width))
    return ImagePlacement(scale, left, scaled_height - height, flip, rotation, (height, width))


def normalize_image(image: Pixels, config: ImageConfig, out: Floats) -> None:
    """Write `(image / 255 - mean) / std`, channels first.

    Args:
        image: (H, W, 3) uint8.
        config: Mean and standard deviation.
        out: (3, H, W) float32, overwritten.
    """
    for channel, (mean, std) in enumerate(zip(config.mean, config.std, strict=True)):
        np.multiply(image[..., channel], np.float32(1 / (255 * std)), out=out[channel])
        out[channel] -= np.float32(mean / std)
