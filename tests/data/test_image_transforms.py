"""Images: the published matrices, and that every pixel is where the matrix says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pointlib.data.image_transforms import (
    ImageConfig,
    ImagePlacement,
    draw_placement,
    normalize_image,
)

# What mit-han-lab/bevfusion db75150 computes; made by running its ImageAug3D.
GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "bevfusion_augmentation.json").read_text()
)
PLACEMENTS = [
    ImagePlacement(0.48, 32, 176, False, 0.0, (256, 704)),
    ImagePlacement(0.4137, 10, 91, True, 0.0, (256, 600)),
    ImagePlacement(0.5311, 87, 180, False, math.radians(5.4), (256, 704)),
    ImagePlacement(0.3893, 3, 70, True, math.radians(-4.1), (256, 600)),
    ImagePlacement(1.37, 500, 300, True, math.radians(80), (300, 300)),
    ImagePlacement(0.2, -30, -50, False, math.radians(3), (256, 400)),
]


def blobs(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """White spots on black, and their centres (K, 2) u, v in continuous coordinates, at odd fractions of pixels."""
    rng = np.random.default_rng(0)
    u, v = np.meshgrid(np.arange(60, width - 50, 90.0), np.arange(50, height - 40, 80.0))
    centres = np.stack([u.ravel(), v.ravel()], 1) + rng.uniform(-0.5, 0.5, (u.size, 2))
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    image = np.zeros((height, width))
    for x, y in centres:
        image += np.outer(np.exp(-((rows - y) ** 2) / 98), np.exp(-((columns - x) ** 2) / 98))
    return np.repeat(np.round(255 * image)[..., None], 3, 2).astype(np.uint8), centres


def centroid(image: np.ndarray, near: np.ndarray, reach: int) -> np.ndarray:
    """Centre of the light within `reach` pixels of a place, in continuous coordinates."""
    u, v = np.floor(near).astype(int)
    patch = image[v - reach : v + reach + 1, u - reach : u + reach + 1, 0].astype(float)
    patch = np.maximum(patch - 20, 0)  # a level more or less far out would weigh too much
    columns, rows = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    return (
        np.array([u, v])
        + 0.5
        + np.array([(patch * a).sum() for a in (columns, rows)]) / patch.sum()
    )


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: f"{p.scale}-{p.flip}")
def test_a_spot_is_shown_where_the_matrix_says(placement: ImagePlacement) -> None:
    image, centres = blobs(900, 1600)
    shown = placement.apply(image)
    height, width = placement.size
    assert shown.shape == (height, width, 3) and shown.dtype == np.uint8
    matrix = placement.matrix()
    expected = centres @ matrix[:2, :2].T + matrix[:2, 3]
    reach = math.ceil(30 * placement.scale)
    low, high = reach + 1, np.array([width, height]) - reach - 2
    seen = expected[((expected > low) & (expected < high)).all(1)]
    assert len(seen) >= 4
    errors = np.array([centroid(shown, spot, reach) - spot for spot in seen])
    assert np.abs(errors).max() < 0.06
    assert np.abs(errors.mean(0)).max() < 0.02  # a shift by half a pixel would be seen at once


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resampled(
    image: np.ndarray, scale: float, left: int, top: int, size: tuple[int, int]
) -> np.ndarray:
    """Scale and cut in float64: at each pixel's centre a cubic filter, widened by 1 / scale."""
    weights = []
    for length, offset, count in ((image.shape[0], top, size[0]), (image.shape[1], left, size[1])):
        centre = (np.arange(count) + offset + 0.5) / scale
        distance = np.arange(length) + 0.5 - centre[:, None]
        weight = cubic(distance * min(scale, 1.0))
        weights.append(weight / weight.sum(1, keepdims=True))
    return np.einsum("hr,rwc,kw->hkc", weights[0], image.astype(float), weights[1], optimize=True)


@pytest.mark.parametrize("scale", [0.48, 0.4137, 1.3])
def test_scaling_agrees_with_a_filter_in_float64(scale: float) -> None:
    """Independent of the installed Pillow: within rounding of two passes to 8 bits."""
    rng = np.random.default_rng(1)
    image = rng.integers(64, 192, (150, 200, 3), dtype=np.uint8)  # no overshoot is cut off
    left, top, size = 7, 11, (40, 70)
    shown = ImagePlacement(scale, left, top, False, 0.0, size).apply(image)
    expected = resampled(image, scale, left, top, size)
    assert np.abs(shown - expected).max() <= 1.5
    assert np.abs(shown - expected).mean() < 0.45


def test_pixels_are_pinned() -> None:
    """The same numbers whatever Pillow is installed, to one level."""
    v, u = np.mgrid[:90, :160]
    image = np.stack([(7 * u + 3 * v) % 256, (u * v) % 256, (5 * v) % 256], 2).astype(np.uint8)
    plain = ImagePlacement(0.48, 3, 17, False, 0.0, (26, 70)).apply(image)
    turned = ImagePlacement(0.48, 3, 17, True, math.radians(5.4), (26, 70)).apply(image)
    assert np.abs(plain[[2, 13, 20], [3, 35, 60]].astype(int) - PINNED_PLAIN).max() <= 1
    assert np.abs(turned[[2, 13, 20], [3, 35, 60]].astype(int) - PINNED_TURNED).max() <= 1


PINNED_PLAIN = [[211, 102, 201], [240, 116, 59], [132, 122, 132]]
PINNED_TURNED = [[71, 150, 169], [221, 139, 59], [182, 138, 156]]


def test_the_published_evaluation_is_reproduced() -> None:
    """Upstream scales the whole image and cuts it afterwards; at 0.48 both directions come out exact."""
    image = np.random.default_rng(2).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    scaled = Image.fromarray(image).resize((768, 432), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled.crop((32, 176, 736, 432))).astype(int)
    shown = draw_placement(ImageConfig(), (900, 1600), None).apply(image)
    assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize("case", GOLDEN["images"] + GOLDEN["evaluation"])
def test_matrices_are_the_published_ones(case: dict[str, Any]) -> None:
    height, width = case["final"]
    if "resize" in case:
        left, top, _, bottom = case["crop"]
        rotation = math.radians(case["rotate_deg"])
        placement = ImagePlacement(
            case["resize"], left, top, case["flip"], rotation, (height, width)
        )
        assert bottom == int(case["recorded"][0] * case["resize"])  # the lower edge is kept
        assert top == bottom - height
    else:
        placement = draw_placement(ImageConfig((height, width)), tuple(case["recorded"]), None)
        assert [placement.left, placement.top] == case["crop"][:2]
    matrix = placement.matrix()
    assert np.allclose(matrix[:2][:, [0, 1, 3]], case["matrix"], rtol=1e-6, atol=2e-4)
    assert np.array_equal(matrix[2:], np.eye(4)[2:])


def test_random_placements_stay_in_their_ranges() -> None:
    config = ImageConfig()
    rng = np.random.default_rng(0)
    drawn = [draw_placement(config, (900, 1600), rng) for _ in range(300)]
    assert all(0.38 <= p.scale < 0.55 and abs(p.rotation) <= math.radians(5.4) for p in drawn)
    assert min(p.scale for p in drawn) < 0.39 and max(p.scale for p in drawn) > 0.54
    assert 100 < sum(p.flip for p in drawn) < 200
    assert all(p.top == int(900 * p.scale) - 256 for p in drawn)
    assert all(0 <= p.left <= max(0, int(1600 * p.scale) - 704) for p in drawn)
    assert {p.left > 0 for p in drawn} == {True, False}


def test_black_where_the_camera_saw_nothing() -> None:
    white = np.full((50, 100, 3), 255, dtype=np.uint8)
    shown = ImagePlacement(0.5, -10, -20, False, 0.0, (60, 80)).apply(white)
    assert (shown[20:45, 10:60] == 255).all()
    assert int(shown.astype(int).sum()) == 25 * 50 * 3 * 255
    turned = ImagePlacement(0.5, -10, -20, False, 0.05, (60, 80)).apply(white)
    assert 0.95 < turned.astype(int).sum() / shown.astype(int).sum() < 1.05
    assert not ImagePlacement(0.5, 500, 0, False, 0.05, (60, 80)).apply(white).any()
    assert not ImagePlacement(0.5, 500, 0, True, 0.0, (60, 80)).apply(white).any()


def test_a_turn_keeps_the_corners_of_the_picture() -> None:
    """What lies outside the cut before a turn is shown after it, where the camera saw it."""
    white = np.full((900, 1600, 3), 255, dtype=np.uint8)
    shown = ImagePlacement(0.5, 48, 100, False, math.radians(5.0), (256, 704)).apply(white)
    assert (shown == 255).all()


def test_normalisation() -> None:
    config = ImageConfig((4, 5))
    image = np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    out = np.empty((3, 4, 5), dtype=np.float32)
    normalize_image(image, config, out)
    expected = (image / 255.0 - np.array(config.mean)) / np.array(config.std)
    assert np.abs(out - expected.transpose(2, 0, 1)).max() < 1e-6


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("final_size", (0, 704)),
        ("resize_range", (0.5, 0.4)),
        ("resize_range", (0.0, 0.4)),
        ("test_resize", -1.0),
        ("rotation", 5.4),
        ("flip", 1.5),
        ("std", (1.0, 0.0, 1.0)),
    ],
)
def test_wrong_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"ImageConfig: {option} must be"):
        ImageConfig(**{option: value})
