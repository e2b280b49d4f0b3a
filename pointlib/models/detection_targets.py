"""What detection heads are trained towards on their grid: the boxes they can find, and the heatmap of their centres."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.models.box_coding import BevGrid
from pointlib.models.heatmap import draw_gaussians, gaussian_radius
from pointlib.sensors import SceneTargets


class GridBoxes(NamedTuple):
    """Boxes of a batch in one row, those of sample 0 first.

    Attributes:
        boxes: (M, 9) float32, `pointlib.geometry.BOX_COLUMNS` with velocity.
        labels: (M,) int64 class.
        samples: (M,) int64 sample.
        cells: (M, 2) int64 cell of each centre along x and y.
    """

    boxes: Tensor
    labels: Tensor
    samples: Tensor
    cells: Tensor


def boxes_on_grid(caller: str, targets: SceneTargets, grid: BevGrid, num_classes: int) -> GridBoxes:
    """Gather the boxes a head can find: those whose centre is in a cell of the grid and whose size is positive.

    Published code truncates towards zero, so that a centre up to a cell before the grid counts as in cell 0. Here it is
    outside.

    Args:
        caller: Named in errors.
        targets: Boxes and labels of B samples.
        grid: Cells of the head's map.
        num_classes: Labels are in [0, num_classes).

    Raises:
        ValueError: If a label is not a class of the head, or boxes and labels do not fit together.
    """
    for boxes, labels in zip(targets.boxes, targets.labels, strict=True):
        if boxes.dim() != 2 or boxes.shape[1] != 9 or labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"{caller}: targets must hold (M, 9) boxes with velocity and (M,) labels, "
                f"got {tuple(boxes.shape)} and {tuple(labels.shape)}."
            )
    counts = torch.tensor([len(boxes) for boxes in targets.boxes])
    boxes = torch.cat(targets.boxes).float()
    labels = torch.cat(targets.labels)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"{caller}: labels must be in [0, {num_classes}), one of the head's classes, "
            f"got {int(labels.min())} to {int(labels.max())}; give head and dataset the same class names."
        )
    samples = torch.arange(len(counts)).repeat_interleave(counts).to(boxes.device)
    cells = grid.to_cells(boxes[:, :2]).floor()
    inside = (cells >= 0).all(1) & (cells < cells.new_tensor(grid.size)).all(1)
    keep = inside & (boxes[:, 3:6] > 0).all(1)
    return GridBoxes(boxes[keep], labels[keep], samples[keep], cells[keep].long())


def centre_heatmap(
    found: GridBoxes,
    grid: BevGrid,
    batch_size: int,
    num_classes: int,
    min_overlap: float,
    min_radius: int,
) -> Tensor:
    """Draw a Gaussian around each centre, in the channel of its class.

    Args:
        found: Boxes of the batch.
        grid: Cells of the map.
        batch_size: B.
        num_classes: C.
        min_overlap: Of `gaussian_radius`.
        min_radius: Smallest radius [cells].

    Returns:
        (B, C, X, Y) float32 in [0, 1].
    """
    size = found.boxes[:, [4, 3]] / found.boxes.new_tensor(grid.cell)
    radii = gaussian_radius(size, min_overlap).long().clamp(min=min_radius)
    shape = (batch_size, num_classes, *grid.size)
    return draw_gaussians(shape, found.samples, found.labels, found.cells, radii)


def check_bev(caller: str, bev: Tensor, in_channels: int, size: tuple[int, int]) -> None:
    """Raise ValueError unless a map is (B, in_channels, *size)."""
    if bev.dim() != 4 or bev.shape[1:] != (in_channels, *size):
        raise ValueError(
            f"{caller}: bev must be (B, {in_channels}, {size[0]}, {size[1]}) for the point_cloud_range, voxel_size "
            f"and out_size_factor of this head, got {tuple(bev.shape)}."
        )
