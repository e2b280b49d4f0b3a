"""Pictures: scans and their labels, boxes on images and from above, maps (matplotlib); a window (open3d)."""

from __future__ import annotations

from pointlib.viz.birds_eye import birds_eye
from pointlib.viz.boxes_birds_eye import boxes_birds_eye
from pointlib.viz.boxes_on_images import boxes_on_images
from pointlib.viz.comparison import side_by_side
from pointlib.viz.gallery import draw_scan, draw_scans, find_scans, overview, show_scan
from pointlib.viz.map_view import map_view
from pointlib.viz.painting import save_figure
from pointlib.viz.range_image import range_image, range_projection
from pointlib.viz.scene import draw_prediction, scene_picture
from pointlib.viz.viewer import show_points

__all__ = [
    "birds_eye",
    "boxes_birds_eye",
    "boxes_on_images",
    "draw_prediction",
    "draw_scan",
    "draw_scans",
    "find_scans",
    "map_view",
    "overview",
    "range_image",
    "range_projection",
    "save_figure",
    "scene_picture",
    "show_points",
    "show_scan",
    "side_by_side",
]
