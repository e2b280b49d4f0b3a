"""Images from files, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointlib.data.image_file import read_image
from pointlib.data.sample import BadSampleError


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(np.arange(24, dtype=np.uint8).reshape(4, 6, 1) * 10, 3, axis=2)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, grey)


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    Image.new("RGB", (2, 1), (200, 100, 50)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(("name", "keep"), [("a.jpg", 0.5), ("a.png", 0.5), ("a.png", 0.0)])
def test_a_cut_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(BadSampleError, match=name):
        read_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match=r"none\.jpg, which does not exist"):
        read_image(tmp_path / "none.jpg")
