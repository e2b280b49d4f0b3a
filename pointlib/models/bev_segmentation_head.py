"""BEVSegmentationHead: which classes of a map cover each cell around the vehicle.

Liu et al., BEVFusion, ICRA 2023, section III.C. Parameter names are those of mit-han-lab/bevfusion (commit db75150),
so its checkpoints load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointlib.models.detection_loss import sigmoid_focal_loss
from pointlib.sensors import SceneTargets

NUSCENES_MAP_CLASSES = (
    "drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider",
)  # fmt: skip

Scope = Sequence[Sequence[float]]
"""Along x, then y: from [m], to [m], edge of a cell [m]."""


class BEVSegmentationOutput(NamedTuple):
    """The map as the head sees it.

    Attributes:
        logits: (B, C, X, Y) float32 that class c covers cell (x, y).
    """

    logits: Tensor


class BEVGridTransform(nn.Module):
    """Sample a bird's-eye map at the centres of other cells, bilinearly; 0 beyond its border.

    The original calls grid_sample, whose gradient on a GPU differs from run to run. Both grids are parallel, so two
    products with small matrices give the same numbers, repeatably.

    Args:
        input_scope: Cells of the map.
        output_scope: Cells to sample.
        prescale_factor: Enlarge the map by this before, bilinearly; 1 does nothing.
    """

    along_x: Tensor
    along_y: Tensor

    def __init__(
        self, input_scope: Scope, output_scope: Scope, prescale_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.input_size = _num_cells("input_scope", input_scope)
        output_size = _num_cells("output_scope", output_scope)
        for axis, name in enumerate(("along_x", "along_y")):
            low, high, _ = input_scope[axis]
            first, _, step = output_scope[axis]
            cells = torch.arange(output_size[axis], dtype=torch.float64)
            metres = (first + step / 2 + step * cells).float()
            places = (metres - low) / (high - low) * 2 - 1
            weights = _bilinear_weights(self.input_size[axis], places, prescale_factor)
            self.register_buffer(name, weights, persistent=False)

    def forward(self, bev: Tensor) -> Tensor:
        """(B, C, X, Y) map of the input scope to a (B, C, X', Y') map of the output scope, float32."""
        with torch.autocast(bev.device.type, enabled=False):
            return self.along_x @ bev.to(self.along_x.dtype) @ self.along_y.mT


class BEVSegmentationHead(nn.Module):
    """Two convolutions and a classifier on the resampled map.

    The defaults are those published for nuScenes.

    Args:
        in_channels: Features of the map.
        input_scope: Cells of the map.
        output_scope: Cells to classify.
        classes: Names of the classes; each may cover any cell.
        loss_type: "focal", sigmoid focal loss with gamma 2 and no alpha, or "xent", cross entropy.
        prescale_factor: Of `BEVGridTransform`.
    """

    def __init__(
        self,
        in_channels: int,
        input_scope: Scope = ((-51.2, 51.2, 0.8), (-51.2, 51.2, 0.8)),
        output_scope: Scope = ((-50.0, 50.0, 0.5), (-50.0, 50.0, 0.5)),
        classes: Sequence[str] = NUSCENES_MAP_CLASSES,
        loss_type: str = "focal",
        prescale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if loss_type not in ("focal", "xent"):
            raise ValueError(
                f"BEVSegmentationHead: loss_type must be 'focal' or 'xent', got {loss_type!r}."
            )
        self.in_channels = in_channels
        self.classes = tuple(classes)
        self.output_scope = tuple(tuple(axis) for axis in output_scope)
        self.output_scope = tuple((low, high, step) for low, high, step in output_scope)
        self.loss_type = loss_type
        self.transform = BEVGridTransform(input_scope, output_scope, prescale_factor)
        self.classifier = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, len(self.classes), 1),
        )

    def forward(self, bev: Tensor) -> BEVSegmentationOutput:
        """Classify a (B, in_channels, X, Y) map of the input scope; ValueError if it has another size."""
        expected = (self.in_channels, *self.transform.input_size)
        if bev.dim() != 4 or bev.shape[1:] != expected:
            raise ValueError(
                f"BEVSegmentationHead.forward: bev must be (B, {', '.join(map(str, expected))}) for this input_scope, "
                f"got {tuple(bev.shape)}."
            )
        return BEVSegmentationOutput(self.classifier(self.transform(bev)).float())

    def loss(self, output: BEVSegmentationOutput, targets: SceneTargets) -> dict[str, Tensor]:
        """Mean over cells for each class, such as `walkway/focal`: scalars to be summed.

        Raises:
            ValueError: If the targets have no map, or not of these classes and cells.
        """
        logits, masks = output.logits.float(), targets.map_masks
        if masks is None or masks.shape != logits.shape:
            got = "no map_masks" if masks is None else f"map_masks {tuple(masks.shape)}"
            raise ValueError(
                f"BEVSegmentationHead.loss: targets must hold map_masks {tuple(logits.shape)}, got {got}; "
                f"the dataset must rasterise {list(self.classes)} on the head's output_scope."
            )
        if self.loss_type == "focal":
            losses = sigmoid_focal_loss(logits, masks, gamma=2.0, alpha=None)
        else:
            losses = F.binary_cross_entropy_with_logits(logits, masks.float(), reduction="none")
        each = losses.mean((0, 2, 3)).unbind()
        return {
            f"{name}/{self.loss_type}": loss for name, loss in zip(self.classes, each, strict=True)
        }

    @torch.no_grad()
    def decode(self, output: BEVSegmentationOutput) -> Tensor:
        """(B, C, X, Y) float32 probability that class c covers cell (x, y)."""
        return output.logits.float().sigmoid()


def _bilinear_weights(cells: int, places: Tensor, prescale_factor: float) -> Tensor:
    """(N, cells) share of each cell of a row in samples at N places in [-1, 1], the borders of the row."""
    each = torch.eye(cells)[None, :, :, None]  # in channel c, 1 at cell c
    if prescale_factor != 1:
        each = F.interpolate(
            each, scale_factor=(prescale_factor, 1.0), mode="bilinear", align_corners=False
        )
    # grid_sample's first coordinate runs along the last axis, which has one cell.
    grid = torch.stack([torch.zeros_like(places), places], -1)[None, :, None]
    samples = F.grid_sample(each, grid, mode="bilinear", align_corners=False)
    return samples[0, :, :, 0].mT.contiguous()


def _num_cells(argument: str, scope: Scope) -> tuple[int, int]:
    """Cells along x and y."""
    sizes = []
    for low, high, step in scope:
        cells = round((high - low) / step) if step > 0 else 0
        if cells < 1 or abs(cells * step - (high - low)) > 1e-3 * step:
            raise ValueError(
                f"BEVGridTransform: {argument} must hold a whole number of cells, from, to and edge [m] for x and y, "
                f"got {[list(axis) for axis in scope]}."
            )
        sizes.append(cells)
    x, y = sizes
    return x, y
