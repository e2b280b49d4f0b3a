"""BEVFusion: cameras and LiDAR meet in one bird's-eye view, from which any number of heads read.

Paper: Liu et al., BEVFusion: Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View Representation, ICRA 2023.
Structure and parameter names are those of mit-han-lab/bevfusion, so its checkpoints load unchanged. CenterPoint and
TransFusion-L are the same class with a LiDAR encoder only; `bevfusion_parts.py` has the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointlib.models import bevfusion_parts as parts
from pointlib.models._registry import register_model
from pointlib.models.bev_segmentation_head import NUSCENES_MAP_CLASSES
from pointlib.models.bevfusion_parts import Ground, Sizes, make_part
from pointlib.models.fusers import FUSERS
from pointlib.models.transfusion_head import NUSCENES_CLASSES
from pointlib.sensors import Detections, ScenePrediction, SceneTargets, SensorBatch


class BEVFusion(nn.Module):
    """Encoders, a fuser, a decoder and heads; every map between them is (B, C, X, Y) in the LiDAR frame.

    Args:
        encoders: "camera" (`CameraEncoder`) and/or "lidar" (`LidarEncoder`), in this order.
        fuser: Joins the encoders' views; None with one encoder.
        decoder: "backbone" and "neck".
        heads: "object" and/or "map"; each has `loss` and `decode`.
        ground: Where the maps lie.

    Attributes:
        class_names: Classes of boxes; () without the head "object".
        map_classes: Classes of the map; () without the head "map".
        point_cloud_range: x, y, z from, then to [m].
        voxel_size: Edges of a voxel [m].
        image_size: Height and width of the images [pixels]; None without cameras.
        map_scope: From, to and step of the map's cells along x and y [m]; None without the head "map".
        reads_points: Whether points are an input: of the encoder "lidar", or of cameras that find depth with them.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        fuser: nn.Module | None,
        decoder: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        ground: Ground,
    ) -> None:
        super().__init__()
        if fuser is None and len(encoders) != 1:
            raise ValueError(
                f"BEVFusion: fuser must be given for several encoders, got None for {', '.join(encoders)}"
            )
        self.encoders = nn.ModuleDict(encoders)
        self.fuser = fuser
        self.decoder = nn.ModuleDict(decoder)
        self.heads = nn.ModuleDict(heads)
        self.class_names = tuple(getattr(heads.get("object"), "class_names", ()))
        self.map_classes = tuple(getattr(heads.get("map"), "classes", ()))
        self.point_cloud_range = tuple(ground.point_cloud_range)
        self.voxel_size = tuple(ground.voxel_size)
        self.image_size = encoders["camera"].image_size if "camera" in encoders else None
        self.map_scope = heads["map"].output_scope if "map" in heads else None
        self.reads_points = "lidar" in encoders or encoders["camera"].reads_points

    def forward(self, batch: SensorBatch) -> dict[str, Any]:
        """Run the network.

        Args:
            batch: What was sensed. A sensor that is None, has no points or no camera present counts as missing and
                brings zeros.

        Returns:
            The output of each head, by its name, for `loss` and `decode`; and "encoders", the losses that encoders
            have themselves, if any.
        """
        present = self.present_sensors(batch)
        views: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for name, encoder in self.encoders.items():
            there = present[name]
            if not there.any():
                shape = (batch.batch_size, *encoder.view_shape)  # type: ignore[misc]
                views.append(torch.zeros(shape, device=batch.device))
                continue
            view, found = encoder(batch)
            views.append(view if there.all() else view * there[:, None, None, None])
            losses |= {f"{name}/{key}": value for key, value in found.items()}
        x = (
            views[0]
            if self.fuser is None
            else self.fuser(views, torch.stack([*present.values()], 1))
        )
        x = self.decoder["neck"](self.decoder["backbone"](x))
        outputs = {name: head(x) for name, head in self.heads.items()}
        return {**outputs, "encoders": losses} if losses else outputs

    def present_sensors(self, batch: SensorBatch) -> dict[str, Tensor]:
        """For each encoder, (B,) bool: whether its sensor brings anything."""
        encoders: dict[str, Any] = dict(self.encoders.items())
        return {name: encoder.is_present(batch) for name, encoder in encoders.items()}

    def missing_sensors(self, batch: SensorBatch) -> list[tuple[str, ...]]:
        """For each sample, the sensors without any data, and single cameras as "camera 3" (counted from 0)."""
        present = {name: flags.tolist() for name, flags in self.present_sensors(batch).items()}
        missing = []
        for sample in range(batch.batch_size):
            names = [name for name, flags in present.items() if not flags[sample]]
            if batch.cameras is not None and "camera" in present and "camera" not in names:
                flags = batch.cameras.present[sample].tolist()
                names += [f"camera {index}" for index, there in enumerate(flags) if not there]
            missing.append(tuple(names))
        return missing

    def loss(self, outputs: Mapping[str, Any], targets: SceneTargets) -> dict[str, Tensor]:
        """Named losses of all heads, as "object/heatmap"; training minimises their sum."""
        losses = dict(outputs.get("encoders", {}))
        for name, head in self.heads.items():
            found = head.loss(outputs[name], targets)  # type: ignore[operator]
            losses |= {f"{name}/{key}": value for key, value in found.items()}
        return losses

    def decode(self, outputs: Mapping[str, Any], batch: SensorBatch) -> list[ScenePrediction]:
        """Boxes and maps of each sample, from the outputs of `forward` for `batch`."""
        size = batch.batch_size
        boxes: list[Detections | None] = [None] * size
        maps: list[Tensor | None] = [None] * size
        if "object" in outputs:
            boxes = list(self.heads["object"].decode(outputs["object"]))  # type: ignore[operator]
        if "map" in outputs:
            maps = list(self.heads["map"].decode(outputs["map"]))  # type: ignore[operator]
        missing = self.missing_sensors(batch)
        return [ScenePrediction(*parts) for parts in zip(boxes, maps, missing, strict=True)]

    @torch.no_grad()
    def predict(self, batch: SensorBatch) -> list[ScenePrediction]:
        """Find boxes and maps in each sample; call `eval()` before."""
        return self.decode(self(batch), batch)


FINE_RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
FINE_VOXEL = (0.075, 0.075, 0.2)
WIDE_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
WIDE_VOXEL = (0.1, 0.1, 0.2)
MAP_SCOPE = ((-50.0, 50.0, 0.5), (-50.0, 50.0, 0.5))
NO_DEPTH = {"view_transform": "lss"}
MAP_DROP = {**NO_DEPTH, "backbone_args": {"drop_path_rate": 0.3}}
COARSE_VOXELS = {"max_voxels": (90_000, 120_000)}
MAP_DECODER = {"blocks": ((2, 160, 2), (2, 320, 2), (2, 640, 1))}
CAMERA_SUPPRESSION = {
    "nms_type": ("circle", "rotate", "rotate", "circle", "rotate", "rotate"),
    "nms_scale": ((1.0,), (1.0, 1.0), (1.0, 1.0), (1.0,), (1.0, 1.0), (2.5, 4.0)),
}


def build_bevfusion(
    ground: Ground,
    image_size: Sequence[int] | None = None,
    camera: Sizes | None = None,
    lidar: Sizes | None = None,
    fuser: Sizes | None = None,
    decoder: Sizes | None = None,
    object_head: Sizes | None = None,
    map_head: Sizes | None = None,
) -> BEVFusion:
    """Put a network together; a part that is None is left out.

    Args:
        ground: Where its maps lie.
        image_size: Height and width of the images [pixels].
        camera: Sizes of the camera encoder, arguments of `bevfusion_parts.lift_splat`.
        lidar: Sizes of the LiDAR encoder, arguments of `bevfusion_parts.voxelnet` or, with the name "pointpillars", of
            `bevfusion_parts.pointpillars`.
        fuser: `{"name": "conv" or "add", "out_channels": ...}`; needed with two encoders.
        decoder: Sizes of the decoder "second" or "resnet", see `bevfusion_parts`.
        object_head: Arguments of `TransFusionHead` or, with the name "center", of `CenterHead`.
        map_head: Arguments of `BEVSegmentationHead`.
    """
    encoders: dict[str, nn.Module] = {}
    if camera is not None:
        size = {"ground": ground, "image_size": image_size}
        encoders["camera"] = make_part(parts.CAMERA_ENCODERS, "lift_splat", camera, **size)
    if lidar is not None:
        encoders["lidar"] = make_part(parts.LIDAR_ENCODERS, "voxelnet", lidar, ground=ground)
    widths: list[int] = [encoder.view_shape[0] for encoder in encoders.values()]  # type: ignore[misc,index]
    joined = None
    if len(encoders) > 1:
        joined = make_part(FUSERS, "conv", fuser, in_channels=widths, out_channels=256)
        widths = [joined.out_channels]
    decoded = make_part(parts.DECODERS, "second", decoder, in_channels=widths[0])
    heads: dict[str, nn.Module] = {}
    channels = decoded["neck"].out_channels
    if object_head is not None:
        heads["object"] = make_part(
            parts.OBJECT_HEADS,
            "transfusion",
            object_head,
            in_channels=channels,
            point_cloud_range=ground.point_cloud_range,
            voxel_size=ground.voxel_size,
            out_size_factor=ground.stride,
        )
    if map_head is not None:
        heads["map"] = make_part(
            parts.MAP_HEADS,
            "segmentation",
            map_head,
            in_channels=channels,
            input_scope=ground.scope(),
        )
    return BEVFusion(encoders, joined, decoded, heads, ground)


@register_model()
def bevfusion_det_cl(
    class_names: Sequence[str] = NUSCENES_CLASSES,
    point_cloud_range: Sequence[float] = FINE_RANGE,
    voxel_size: Sequence[float] = FINE_VOXEL,
    image_size: Sequence[int] = (256, 704),
    camera: Sizes | None = None,
    lidar: Sizes | None = None,
    fuser: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """BEVFusion for boxes from six cameras and LiDAR, 39.8 M parameters."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size),
        image_size,
        camera=camera or {},
        lidar=lidar or {},
        fuser=fuser,
        decoder=decoder,
        object_head={"class_names": class_names, **(head or {})},
    )


@register_model()
def bevfusion_det_l(
    class_names: Sequence[str] = NUSCENES_CLASSES,
    point_cloud_range: Sequence[float] = FINE_RANGE,
    voxel_size: Sequence[float] = FINE_VOXEL,
    lidar: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """BEVFusion for boxes from LiDAR: TransFusion-L at 0.075 m, 8.3 M parameters."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size),
        lidar=lidar or {},
        decoder=decoder,
        object_head={"class_names": class_names, **(head or {})},
    )


@register_model()
def bevfusion_det_c(
    class_names: Sequence[str] = NUSCENES_CLASSES,
    point_cloud_range: Sequence[float] = WIDE_RANGE,
    voxel_size: Sequence[float] = WIDE_VOXEL,
    image_size: Sequence[int] = (256, 704),
    camera: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """BEVFusion for boxes from six cameras, with CenterHead."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size),
        image_size,
        camera={**NO_DEPTH, **(camera or {})},
        decoder={"name": "resnet", **(decoder or {})},
        object_head={
            "name": "center",
            "class_names": class_names,
            **CAMERA_SUPPRESSION,
            **(head or {}),
        },
    )


@register_model()
def bevfusion_seg_cl(
    map_classes: Sequence[str] = NUSCENES_MAP_CLASSES,
    point_cloud_range: Sequence[float] = WIDE_RANGE,
    voxel_size: Sequence[float] = WIDE_VOXEL,
    map_scope: Sequence[Sequence[float]] = MAP_SCOPE,
    image_size: Sequence[int] = (256, 704),
    camera: Sizes | None = None,
    lidar: Sizes | None = None,
    fuser: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """BEVFusion for the map from six cameras and LiDAR."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size),
        image_size,
        camera={**MAP_DROP, **(camera or {})},
        lidar={**COARSE_VOXELS, **(lidar or {})},
        fuser=fuser,
        decoder=decoder,
        map_head={"classes": map_classes, "output_scope": map_scope, **(head or {})},
    )


@register_model()
def bevfusion_seg_l(
    map_classes: Sequence[str] = NUSCENES_MAP_CLASSES,
    point_cloud_range: Sequence[float] = WIDE_RANGE,
    voxel_size: Sequence[float] = WIDE_VOXEL,
    map_scope: Sequence[Sequence[float]] = MAP_SCOPE,
    lidar: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """BEVFusion for the map from LiDAR."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size),
        lidar={**COARSE_VOXELS, **(lidar or {})},
        decoder=decoder,
        map_head={"classes": map_classes, "output_scope": map_scope, **(head or {})},
    )


@register_model()
def bevfusion_seg_c(
    map_classes: Sequence[str] = NUSCENES_MAP_CLASSES,
    point_cloud_range: Sequence[float] = WIDE_RANGE,
    voxel_size: Sequence[float] = WIDE_VOXEL,
    map_scope: Sequence[Sequence[float]] = MAP_SCOPE,
    image_size: Sequence[int] = (256, 704),
    camera: Sizes | None = None,
    decoder: Sizes | None = None,
    head: Sizes | None = None,
) -> BEVFusion:
    """BEVFusion for the map from six cameras."""
    return build_bevfusion(
        Ground(point_cloud_range, voxel_size),
        image_size,
        camera={**MAP_DROP, **(camera or {})},
        decoder={"name": "resnet", **MAP_DECODER, **(decoder or {})},
        map_head={"classes": map_classes, "output_scope": map_scope, **(head or {})},
    )
