"""An interactive window on a scan; needs the `viz` extra (open3d) and a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pointlib.data import LabelMap
from pointlib.viz.painting import (
    check_labels,
    check_points,
    class_colors,
    height_colors,
    resolve_map,
)


def show_points(
    points: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    label_map: LabelMap | str | Path = "official",
    title: str = "pointlib",
) -> None:
    """Open a window to turn, move and zoom a scan in, and return when it is closed.

    Args:
        points: (N, 3+) float, x, y, z [m].
        labels: (N,) train ids for the colours, 255 = no class; None colours by height.
        label_map: Names and colours of the classes: a map, "official", "spvnas" or a YAML file.
        title: Of the window.

    Raises:
        ImportError: open3d is not installed.
        RuntimeError: No window can be opened.
        ValueError: An argument breaks its contract.
    """
    array, names = check_points("show_points", points), resolve_map(label_map)
    if labels is None:
        colors = height_colors(array)
    else:
        ids = check_labels("show_points", "labels", labels, len(array), names)
        colors = class_colors(ids, names)
    try:
        import open3d
    except ImportError as error:
        raise ImportError(
            'show_points: the interactive window needs open3d, run: pip install "pointlib[viz]"'
        ) from error
    cloud = open3d.geometry.PointCloud()
    cloud.points = open3d.utility.Vector3dVector(array[:, :3].astype(np.float64))
    cloud.colors = open3d.utility.Vector3dVector(colors / 255.0)
    window = open3d.visualization.Visualizer()
    if not window.create_window(window_name=title):
        raise RuntimeError(
            "show_points: a window must be possible here, got none from open3d; without a display, "
            "write pictures instead (tools/visualize.py without --interactive)"
        )
    window.add_geometry(cloud)
    options = window.get_render_option()
    options.background_color = np.array([0.08, 0.09, 0.11])
    options.point_size = 2.0
    window.run()
    window.destroy_window()
