"""Pictures of scans and their labels: bird's eye and range images (matplotlib), an interactive window (open3d)."""

from __future__ import annotations

from pointlib.viz.birds_eye import birds_eye
from pointlib.viz.comparison import side_by_side
from pointlib.viz.gallery import draw_scan, draw_scans, find_scans, overview, show_scan
from pointlib.viz.painting import save_figure
from pointlib.viz.range_image import range_image, range_projection
from pointlib.viz.viewer import show_points

__all__ = [
    "birds_eye",
    "draw_scan",
    "draw_scans",
    "find_scans",
    "overview",
    "range_image",
    "range_projection",
    "save_figure",
    "show_points",
    "show_scan",
    "side_by_side",
]
