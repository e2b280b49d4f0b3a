"""SPVCNN: MinkUNet with a point branch that keeps the detail which coarse voxels lose.

Paper: Tang et al., Searching Efficient 3D Architectures with Sparse Point-Voxel Convolution, ECCV 2020, section 3.
Layer structure and parameter names are those of mit-han-lab/spvnas, so its checkpoints load unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn

from pointlib.models._registry import register_model
from pointlib.models.minkunet import MinkUNet
from pointlib.nn import point_to_voxel, voxel_to_point
from pointlib.tensor import PointTensor, SparseTensor


class SPVCNN(MinkUNet):
    """MinkUNet whose stem, bottleneck and middle decoder exchange features with a branch on the points.

    The points are the voxels of stride 1, as in the original: one point a 5 cm voxel.

    Args:
        in_channels: Features of a voxel.
        num_classes: Classes to score.
        cr: Channel ratio; every width is int(cr * its width in minkunet.WIDTHS).
    """

    def __init__(self, in_channels: int = 4, num_classes: int = 19, cr: float = 1.0) -> None:
        super().__init__(in_channels, num_classes, cr)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: SparseTensor) -> Tensor:
        """Score every voxel.

        Args:
            x: (N, in_channels) features on voxels of stride 1.

        Returns:
            (N, num_classes) logits, in the order of x.
        """
        x0, x1, x2, x3, x4 = self.encode(x)
        transform0, transform1, transform2 = self.point_transforms
        # Points sit on the voxels of stride 1, where both exchanges are the identity: z0 is x0.
        z0 = x0.as_points()
        z1 = z0.with_feats(voxel_to_point(x4, z0).feats + transform0(z0.feats))
        y1 = self.decode(self.up1, self.from_points(x4, z1), x3)
        y2 = self.decode(self.up2, y1, x2)
        z2 = z1.with_feats(voxel_to_point(y2, z1).feats + transform1(z1.feats))
        y3 = self.decode(self.up3, self.from_points(y2, z2), x1)
        y4 = self.decode(self.up4, y3, x0)
        return self.classifier(y4.feats + transform2(z2.feats))

    @staticmethod
    def decode(up: nn.Module, x: SparseTensor, skip: SparseTensor) -> SparseTensor:
        """One decoder stage: up to the voxels of `skip`, join its features, refine."""
        deconv, refine = up.children()
        first, second = refine.children()
        return second(first(deconv(x), skip))

    def from_points(self, x: SparseTensor, z: PointTensor) -> SparseTensor:
        """Average the points into the voxels of x, with dropout."""
        voxels = point_to_voxel(x, z)
        return voxels.with_feats(self.dropout(voxels.feats))


@register_model()
def spvcnn(in_channels: int = 4, num_classes: int = 19, cr: float = 1.0) -> SPVCNN:
    """SPVCNN at any channel ratio cr."""
    return SPVCNN(in_channels, num_classes, cr)


@register_model()
def spvcnn_cr0p5(in_channels: int = 4, num_classes: int = 19) -> SPVCNN:
    """SPVCNN, 5.5 M parameters."""
    return SPVCNN(in_channels, num_classes, cr=0.5)


@register_model()
def spvcnn_cr0p64(in_channels: int = 4, num_classes: int = 19) -> SPVCNN:
    """SPVCNN, 8.8 M parameters."""
    return SPVCNN(in_channels, num_classes, cr=0.64)


@register_model()
def spvcnn_cr1p0(in_channels: int = 4, num_classes: int = 19) -> SPVCNN:
    """SPVCNN, 21.8 M parameters."""
    return SPVCNN(in_channels, num_classes, cr=1.0)
