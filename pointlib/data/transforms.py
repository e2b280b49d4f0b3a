"""Augmentation of single scans: callables `(sample, rng) -> sample`, all randomness from `rng`.

Every transform draws the same number of values whatever the points are, and none changes its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pointlib.data.sample import BadSampleError, PointCloudSample


class RandomRotateZ:
    """Rotate about z by an angle from U(low, high), counter-clockwise seen from above.

    Published (SPVNAS): the whole turn.

    Args:
        low: Smallest angle in radians.
        high: Largest angle in radians; equal to `low` for a fixed rotation.
    """

    def __init__(self, low: float = 0.0, high: float = 2 * math.pi) -> None:
        self.low, self.high = _interval("RandomRotateZ", low, high)

    def __call__(self, sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        """Return the rotated scan."""
        return sample.replace(points=rotate_z(sample.points, rng.uniform(self.low, self.high)))


class RandomScale:
    """Scale x, y and z by one factor from U(low, high). Published (SPVNAS): 0.95 to 1.05.

    Args:
        low: Smallest factor.
        high: Largest factor.
    """

    def __init__(self, low: float = 0.95, high: float = 1.05) -> None:
        self.low, self.high = _interval("RandomScale", low, high)
        if low <= 0:
            raise ValueError(f"RandomScale: low must be positive, got {low}.")

    def __call__(self, sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        """Return the scaled scan."""
        points = sample.points.copy()
        points[:, :3] *= np.float32(rng.uniform(self.low, self.high))
        return sample.replace(points=points)


class RandomFlip:
    """Mirror x and y, each on its own.

    Args:
        x_probability: Probability of x -> -x.
        y_probability: Probability of y -> -y.
    """

    def __init__(self, x_probability: float = 0.5, y_probability: float = 0.5) -> None:
        self.x_probability = _probability("RandomFlip", "x_probability", x_probability)
        self.y_probability = _probability("RandomFlip", "y_probability", y_probability)

    def __call__(self, sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        """Return the scan, mirrored or not."""
        flips = rng.random(2) < (self.x_probability, self.y_probability)
        points = sample.points.copy()
        points[:, :2] *= np.where(flips, -1, 1).astype(np.float32)
        return sample.replace(points=points)


class RandomTranslate:
    """Shift the whole scan by N(0, std) on each axis.

    Args:
        std: Standard deviation on x, y, z in metres.
    """

    def __init__(self, std: Sequence[float] = (0.1, 0.1, 0.1)) -> None:
        if len(std) != 3 or min(std) < 0:
            raise ValueError(f"RandomTranslate: std must be three metres >= 0, got {list(std)}.")
        self.std = tuple(std)

    def __call__(self, sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        """Return the shifted scan."""
        points = sample.points.copy()
        points[:, :3] += (rng.standard_normal(3) * self.std).astype(np.float32)
        return sample.replace(points=points)


class RandomJitter:
    """Shift every point by its own N(0, std) on each axis, cut off at +-clip.

    Args:
        std: Standard deviation in metres.
        clip: Largest shift in metres.
    """

    def __init__(self, std: float = 0.01, clip: float = 0.05) -> None:
        if std < 0 or clip < 0:
            raise ValueError(f"RandomJitter: std and clip must be metres >= 0, got {std}, {clip}.")
        self.std, self.clip = std, clip

    def __call__(self, sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        """Return the scan with every point moved."""
        noise = rng.standard_normal((len(sample), 3), dtype=np.float32)
        noise *= np.float32(self.std)
        points = sample.points.copy()
        points[:, :3] += np.clip(noise, -self.clip, self.clip)
        return sample.replace(points=points)


class RandomPointDrop:
    """Leave out a share of the points, the share from U(0, max_ratio).

    Args:
        max_ratio: Largest share, below 1.
    """

    def __init__(self, max_ratio: float = 0.2) -> None:
        if not 0 <= max_ratio < 1:
            raise ValueError(f"RandomPointDrop: max_ratio must be in [0, 1), got {max_ratio}.")
        self.max_ratio = max_ratio

    def __call__(self, sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        """Return the scan without the dropped points, the others in their order."""
        ratio = rng.uniform(0.0, self.max_ratio)
        return sample.select(rng.random(len(sample), dtype=np.float32) >= ratio)


class PointRangeCrop:
    """Keep the points inside a box. Cropped points get no prediction: use it in evaluation only where that is meant.

    Args:
        point_cloud_range: x, y, z minimum and x, y, z maximum in metres; the minimum is inside, the maximum not.
    """

    def __init__(self, point_cloud_range: Sequence[float]) -> None:
        box = np.asarray(point_cloud_range, dtype=np.float32)
        if box.shape != (6,) or not (box[:3] < box[3:]).all():
            raise ValueError(
                "PointRangeCrop: point_cloud_range must be 3 minima and 3 larger maxima in metres, got "
                f"{list(point_cloud_range)}."
            )
        self.low, self.high = box[:3], box[3:]

    def __call__(self, sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        """Return the points inside.

        Raises:
            BadSampleError: If none is.
        """
        xyz = sample.points[:, :3]
        inside = np.all((xyz >= self.low) & (xyz < self.high), axis=1)
        if not inside.any():
            raise BadSampleError(
                f"PointRangeCrop: {sample.path} must have points inside point_cloud_range "
                f"{[*self.low.tolist(), *self.high.tolist()]}, got 0 of {len(sample)}. Check the range's order "
                "(3 minima, 3 maxima), its unit (metres) and the frame of the points."
            )
        return sample.select(inside)


def rotate_z(points: npt.NDArray[np.float32], angle: float) -> npt.NDArray[np.float32]:
    """Rotate points about z.

    Args:
        points: (N, 3 or more) float32; columns from the third on stay.
        angle: Radians, counter-clockwise seen from above.

    Returns:
        The same shape, a new array.
    """
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    rotated = points.copy()
    rotated[:, 0] = cos * points[:, 0] - sin * points[:, 1]
    rotated[:, 1] = sin * points[:, 0] + cos * points[:, 1]
    return rotated


def _interval(owner: str, low: float, high: float) -> tuple[float, float]:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{owner}: low must be at most high, both finite, got {low} and {high}.")
    return low, high


def _probability(owner: str, name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} must be a probability in [0, 1], got {value}.")
    return value
