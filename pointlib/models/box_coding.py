"""Boxes as detection heads regress them, and back: the encoding of published nuScenes checkpoints.

mit-han-lab/bevfusion (and every mmdetection3d before 1.0) writes a box as x, y, z of the centre of its lower face,
width, length, height, and an angle that grows clockwise from -y. Heads regress `CODE_COLUMNS` of it. All of that stays
in this file: everywhere else boxes are `pointlib.geometry.BOX_COLUMNS` with velocity.

| what         | published                    | here                                     |
|--------------|------------------------------|------------------------------------------|
| centre       | of the lower face            | of the box                               |
| size         | w, l, h                      | l, w, h                                  |
| yaw          | -yaw - pi / 2                | counter-clockwise from +x, in [-pi, pi)  |
| velocity     | vx, vy                       | the same                                 |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointlib.geometry import wrap_angle

CODE_COLUMNS = (
    "x [cells]", "y [cells]", "z [m] of the centre", "log w", "log l", "log h", "sin", "cos", "vx", "vy",
)  # fmt: skip
"""What a head regresses: 10 columns, or the first 8 without velocity. sin and cos are of the published yaw.

Columns of TransFusion's coder of code size 10; CenterPoint's are the same with x and y less the cell of the centre.
"""


@dataclass(frozen=True)
class BevGrid:
    """The cells of a bird's-eye map on which a head finds boxes.

    Attributes:
        origin: x, y [m] of the outer corner of cell (0, 0).
        cell: Edges of a cell along x and y [m].
        size: Cells along x and y.
    """

    origin: tuple[float, float]
    cell: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def of_voxels(
        cls,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        out_size_factor: int,
    ) -> BevGrid:
        """The grid that is left of voxels after a backbone of some stride.

        Args:
            point_cloud_range: x, y, z from, then to [m].
            voxel_size: Edges of a voxel along x, y (and z) [m].
            out_size_factor: Voxels along an edge of a cell.

        Raises:
            ValueError: If a length is wrong or a size not positive, or the range does not hold whole cells.
        """
        name = "BevGrid.of_voxels"
        if len(point_cloud_range) != 6:
            raise ValueError(
                f"{name}: point_cloud_range must be 6 numbers, x, y, z from and to, got {list(point_cloud_range)}."
            )
        if len(voxel_size) < 2 or min(voxel_size[:2]) <= 0 or out_size_factor < 1:
            raise ValueError(
                f"{name}: voxel_size must be positive along x and y and out_size_factor >= 1, "
                f"got {list(voxel_size)} and {out_size_factor}."
            )
        cell = (voxel_size[0] * out_size_factor, voxel_size[1] * out_size_factor)
        size = []
        for axis in (0, 1):
            extent = (point_cloud_range[3 + axis] - point_cloud_range[axis]) / cell[axis]
            size.append(round(extent))
            if size[axis] < 1 or abs(extent - size[axis]) > 1e-3:
                raise ValueError(
                    f"{name}: point_cloud_range must hold a whole number of cells of {cell[axis]:g} m along "
                    f"{'xy'[axis]}, got {extent:g}; change the range or voxel_size * out_size_factor."
                )
        origin = (float(point_cloud_range[0]), float(point_cloud_range[1]))
        return cls(origin, cell, (size[0], size[1]))

    def to_cells(self, xy: Tensor) -> Tensor:
        """(..., 2) x, y [m] as (..., 2) cells; cell (i, j) holds [i, i + 1) x [j, j + 1)."""
        return (xy - xy.new_tensor(self.origin)) / xy.new_tensor(self.cell)

    def to_metres(self, cells: Tensor) -> Tensor:
        """(..., 2) cells as (..., 2) x, y [m]."""
        return cells * cells.new_tensor(self.cell) + cells.new_tensor(self.origin)


def published_boxes(boxes: Tensor) -> Tensor:
    """Write boxes as mit-han-lab/bevfusion does.

    Args:
        boxes: (N, 7) or (N, 9), `pointlib.geometry.BOX_COLUMNS`.

    Returns:
        (N, 7) or (N, 9) `[x, y, z of the lower face, w, l, h, -yaw - pi / 2, vx, vy]`, the angle in [-pi, pi).

    Example:
        >>> published_boxes(torch.tensor([[1.0, 2, 3, 4.0, 2.0, 1.0, 0.0]])).tolist()
        [[1.0, 2.0, 2.5, 2.0, 4.0, 1.0, -1.5707963705062866]]
    """
    _check_columns("published_boxes", "boxes", boxes, (7, 9))
    x, y, z, length, width, height, yaw = boxes[:, :7].unbind(1)
    turned = wrap_angle(-yaw - math.pi / 2)
    columns = [x, y, z - height / 2, width, length, height, turned]
    return torch.cat([torch.stack(columns, 1), boxes[:, 7:]], 1)


def boxes_from_published(published: Tensor) -> Tensor:
    """Read boxes that mit-han-lab/bevfusion wrote: the inverse of `published_boxes`.

    Args:
        published: (N, 7) or (N, 9) `[x, y, z of the lower face, w, l, h, angle, vx, vy]`.

    Returns:
        (N, 7) or (N, 9), `pointlib.geometry.BOX_COLUMNS`.
    """
    _check_columns("boxes_from_published", "published", published, (7, 9))
    x, y, z, width, length, height, angle = published[:, :7].unbind(1)
    yaw = wrap_angle(-angle - math.pi / 2)
    columns = [x, y, z + height / 2, length, width, height, yaw]
    return torch.cat([torch.stack(columns, 1), published[:, 7:]], 1)


def encode_boxes(boxes: Tensor, grid: BevGrid) -> Tensor:
    """What a head should regress for boxes.

    Args:
        boxes: (N, 7) or (N, 9), `pointlib.geometry.BOX_COLUMNS`; sizes positive.
        grid: Cells of the head's map.

    Returns:
        (N, 8), or (N, 10) for boxes with velocity: `CODE_COLUMNS`.
    """
    _check_columns("encode_boxes", "boxes", boxes, (7, 9))
    yaw = boxes[:, 6:7]
    return torch.cat(
        [
            grid.to_cells(boxes[:, :2]),
            boxes[:, 2:3],
            boxes[:, [4, 3, 5]].log(),
            -yaw.cos(),  # sin(-yaw - pi / 2)
            -yaw.sin(),  # cos(-yaw - pi / 2)
            boxes[:, 7:],
        ],
        1,
    )


def decode_boxes(codes: Tensor, grid: BevGrid) -> Tensor:
    """Boxes that a head found: the inverse of `encode_boxes`.

    Args:
        codes: (..., 8) or (..., 10) `CODE_COLUMNS`.
        grid: Cells of the head's map.

    Returns:
        (..., 7), or (..., 9) for codes with velocity: `pointlib.geometry.BOX_COLUMNS`, yaw in [-pi, pi].
    """
    if codes.shape[-1] not in (8, 10):
        raise ValueError(
            f"decode_boxes: codes must have 8 or 10 columns, got shape {tuple(codes.shape)}"
        )
    width, length, height = codes[..., 3:6].exp().unbind(-1)
    yaw = torch.atan2(-codes[..., 7], -codes[..., 6])
    return torch.cat(
        [
            grid.to_metres(codes[..., :2]),
            codes[..., 2:3],
            torch.stack([length, width, height, yaw], -1),
            codes[..., 8:],
        ],
        -1,
    )


def _check_columns(function: str, argument: str, value: Tensor, columns: tuple[int, int]) -> None:
    if value.dim() != 2 or value.shape[1] not in columns:
        raise ValueError(
            f"{function}: {argument} must be (N, {columns[0]}) or (N, {columns[1]}), got {tuple(value.shape)}."
        )
