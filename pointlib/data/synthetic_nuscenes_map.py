"""The maps of a synthetic nuScenes dataset: the expansion's vector layers and the masks of road and sidewalk."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pointlib.data.synthetic_nuscenes_layout import MAP_MASKS
from pointlib.data.synthetic_nuscenes_scene import NuScenesScene
from pointlib.files import write_file

LAYERS = (
    "polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway",
    "stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector",
)  # fmt: skip


def write_maps(
    root: Path,
    scenes: Mapping[str, Sequence[tuple[str, NuScenesScene]]],
    sizes: Mapping[str, tuple[float, float]],
) -> dict[str, str]:
    """Write the maps of all locations; returns the file name of each location's mask."""
    written = {}
    for location in scenes:
        width, height = sizes[location]
        expansion: dict[str, Any] = {name: [] for name in LAYERS}
        expansion |= {
            "version": "1.3",
            "canvas_edge": [width, height],
            "arcline_path_3": {},
            "connectivity": {},
        }
        write_file(root / "maps" / "expansion" / f"{location}.json", json.dumps(expansion))
        mask = np.zeros((int(height * 10), int(width * 10)), np.uint8)
        packed = io.BytesIO()
        Image.fromarray(mask).save(packed, "PNG")
        name = f"maps/{MAP_MASKS[location]}.png"
        write_file(root / name, packed.getvalue())
        write_file(root / "maps" / "basemap" / f"{location}.png", packed.getvalue())
        written[location] = name
    return written
