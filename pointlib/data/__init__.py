"""Datasets, augmentation, voxelization and batches, and files of point clouds."""

from __future__ import annotations

from pointlib.data.argoverse2 import Argoverse2
from pointlib.data.class_balance import balanced_indices
from pointlib.data.gt_paste import ObjectPaste, PasteConfig
from pointlib.data.image_transforms import ImageConfig
from pointlib.data.joined_sources import JoinedSources
from pointlib.data.kitti_calibration import (
    read_calibration,
    read_camera_poses,
    read_lidar2world,
    read_times,
)
from pointlib.data.kitti_object import KITTIObject
from pointlib.data.label_map import LabelMap, load_label_map
from pointlib.data.lidar_transforms import LidarAugmentConfig
from pointlib.data.mix import LaserMix, MixTransform, PolarMix, RandomChoice, Transform
from pointlib.data.multi_sensor import (
    CameraImage,
    MapLayers,
    MultiSensorSample,
    MultiSensorSource,
)
from pointlib.data.multi_sensor_batch import MultiSensorBatch, PreparedSample, collate_multi_sensor
from pointlib.data.multi_sensor_pipeline import MultiSensorDataset, MultiSensorPipeline
from pointlib.data.nuscenes import NuScenes
from pointlib.data.nuscenes_index import DETECTION_CLASSES
from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.data.nuscenes_lidarseg import NuScenesLidarSeg
from pointlib.data.nuscenes_map import MAP_CLASSES, MapGrid, rasterize_map
from pointlib.data.pandaset import PandaSet
from pointlib.data.pandaset_segmentation import PandaSetSegmentation
from pointlib.data.paste_database import PasteDatabase, build_paste_database
from pointlib.data.point_cloud_io import read_points, write_points
from pointlib.data.sample import (
    IGNORE_INDEX,
    BadSampleError,
    PointCloudSample,
    SegmentationBatch,
    VoxelSample,
    collate_segmentation,
)
from pointlib.data.sampler import EpochSampler, SampleKey
from pointlib.data.segmentation import (
    ScanSource,
    SegmentationDataset,
    segmentation_transforms,
)
from pointlib.data.semantic_kitti import RawLabels, SemanticKITTI, read_labels, write_labels
from pointlib.data.transforms import (
    PointRangeCrop,
    RandomFlip,
    RandomJitter,
    RandomPointDrop,
    RandomRotateZ,
    RandomScale,
    RandomTranslate,
)
from pointlib.data.voxelize import VoxelizeSegmentation

__all__ = [
    # data sets and batches
    "SemanticKITTI",
    "PandaSet",
    "PandaSetSegmentation",
    "KITTIObject",
    "Argoverse2",
    "JoinedSources",
    "NuScenes",
    "NuScenesInfo",
    "NuScenesLidarSeg",
    "DETECTION_CLASSES",
    "MAP_CLASSES",
    "MapGrid",
    "rasterize_map",
    "ScanSource",
    "SegmentationDataset",
    "EpochSampler",
    "SampleKey",
    "PointCloudSample",
    "VoxelSample",
    "SegmentationBatch",
    "collate_segmentation",
    "BadSampleError",
    "IGNORE_INDEX",
    # several sensors
    "MultiSensorSource",
    "MultiSensorSample",
    "CameraImage",
    "MapLayers",
    "MultiSensorDataset",
    "MultiSensorPipeline",
    "PreparedSample",
    "MultiSensorBatch",
    "collate_multi_sensor",
    "ImageConfig",
    "LidarAugmentConfig",
    "PasteConfig",
    "ObjectPaste",
    "PasteDatabase",
    "build_paste_database",
    "balanced_indices",
    # augmentation and voxels
    "segmentation_transforms",
    "Transform",
    "MixTransform",
    "RandomRotateZ",
    "RandomScale",
    "RandomFlip",
    "RandomTranslate",
    "RandomJitter",
    "RandomPointDrop",
    "PointRangeCrop",
    "PolarMix",
    "LaserMix",
    "RandomChoice",
    "VoxelizeSegmentation",
    # labels and files
    "LabelMap",
    "load_label_map",
    "RawLabels",
    "read_labels",
    "write_labels",
    "read_points",
    "write_points",
    "read_calibration",
    "read_camera_poses",
    "read_lidar2world",
    "read_times",
]
