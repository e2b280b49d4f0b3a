"""Neural network modules over SparseTensor and PointTensor."""

from pointlib.nn.activation import GELU, Dropout, LeakyReLU, Linear, ReLU, SiLU
from pointlib.nn.conv import Conv3d
from pointlib.nn.fused import conv_norm_act
from pointlib.nn.merge import add, cat, union_add
from pointlib.nn.norm import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    SyncBatchNorm,
    convert_sync_batchnorm,
)
from pointlib.nn.point_voxel import initial_voxelize, point_to_voxel, voxel_to_point
from pointlib.nn.pooling import (
    AvgPool3d,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalSumPool,
    MaxPool3d,
    MaxUnpool3d,
    SumPool3d,
    Unpool3d,
)
from pointlib.nn.sites import Crop, ToBEV, crop, prune, to_bev

__all__ = [
    "GELU",
    "AvgPool3d",
    "BatchNorm",
    "Conv3d",
    "Crop",
    "Dropout",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GlobalSumPool",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool3d",
    "MaxUnpool3d",
    "ReLU",
    "SiLU",
    "SumPool3d",
    "SyncBatchNorm",
    "ToBEV",
    "Unpool3d",
    "add",
    "cat",
    "conv_norm_act",
    "convert_sync_batchnorm",
    "crop",
    "initial_voxelize",
    "point_to_voxel",
    "prune",
    "to_bev",
    "union_add",
    "voxel_to_point",
]
