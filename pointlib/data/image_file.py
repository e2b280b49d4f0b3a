"""Reading camera images from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pointlib.data.sample import BadSampleError


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read a JPEG, PNG or whatever else Pillow reads.

    Args:
        path: The file.

    Returns:
        (H, W, 3) uint8 RGB, writeable.

    Raises:
        BadSampleError: If the file is missing, cut short or no image.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise BadSampleError(
            f"read_image: path must be an image, got {path}, which does not exist. Download it again, or go on "
            'without its camera (missing_images="black" where the dataset has that option).'
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSampleError(
            f"read_image: path must be a complete image, got {path} ({error}). Download or extract it again."
        ) from error
