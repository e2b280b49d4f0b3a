"""CenterPoint and TransFusion-L: LiDAR detectors that BEVFusion is built on, as networks of the same class.

Papers: Yin et al., Center-based 3D Object Detection and Tracking, CVPR 2021; Bai et al., TransFusion: Robust
LiDAR-Camera Fusion for 3D Object Detection with Transformers, CVPR 2022. Parameter names are those that
mit-han-lab/bevfusion gives these parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from pointlib.models._registry import register_model
from pointlib.models.bevfusion import (
    FINE_RANGE,
    FINE_VOXEL,
    WIDE_RANGE,
    BEVFusion,
    bevfusion_det_l,
    build_bevfusion,
)
from pointlib.models.bevfusion_parts import Ground, Sizes
from pointlib.models.center_head import NUSCENES_TASKS

PILLAR = (0.2, 0.2, 8.0)
PILLAR_DECODER = {
    "out_channels": (64, 128, 256),
    "layer_nums": (3, 5, 5),
    "layer_strides": (2, 2, 2),
    "neck_channels": (128, 128, 128),
    "upsample_strides": (0.5, 1, 2),
}


@register_model()
def centerpoint_voxel0075(
    tasks: Sequence[Sequence[str]] = NUSCENES_TASKS,
    class_names: Sequence[str] | None = None,
    point_cloud_range: Sequence[float] = FINE_RANGE,
    voxel_size: Sequence[float] = FINE_VOXEL,
    lidar: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """CenterPoint on voxels of 0.075 m."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size),
        lidar=lidar or {},
        decoder=decoder,
        object_head={"name": "center", "tasks": tasks, "class_names": class_names, **(head or {})},
    )


@register_model()
def centerpoint_pillar(
    tasks: Sequence[Sequence[str]] = NUSCENES_TASKS,
    class_names: Sequence[str] | None = None,
    point_cloud_range: Sequence[float] = WIDE_RANGE,
    voxel_size: Sequence[float] = PILLAR,
    lidar: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """CenterPoint on pillars of 0.2 m."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size, stride=4),
        lidar={"name": "pointpillars", **(lidar or {})},
        decoder={**PILLAR_DECODER, **(decoder or {})},
        object_head={"name": "center", "tasks": tasks, "class_names": class_names, **(head or {})},
    )


register_model("transfusion_l")(bevfusion_det_l)
