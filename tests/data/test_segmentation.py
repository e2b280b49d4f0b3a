"""The pipeline: the same sample whoever makes it, and bad samples stopped or replaced."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pointlib.data import (
    BadSampleError,
    EpochSampler,
    PointCloudSample,
    SampleKey,
    SegmentationBatch,
    SegmentationDataset,
    SemanticKITTI,
    VoxelizeSegmentation,
    VoxelSample,
    collate_segmentation,
    segmentation_transforms,
)
from pointlib.data.mix import MixTransform, Transform
from tests.data.test_semantic_kitti import damage

EVERYTHING = {
    "flip": 0.5,
    "jitter": 0.01,
    "translation": 0.1,
    "drop": 0.1,
    "polar_mix": 0.5,
    "laser_mix": 0.5,
}


def pipeline(
    root: Path, transforms: Sequence[Transform | MixTransform] | None = None, **options: object
) -> SegmentationDataset:
    return SegmentationDataset(
        SemanticKITTI(root, ["00", "08"]),
        VoxelizeSegmentation(0.5, max_voxels=40),
        segmentation_transforms(**EVERYTHING) if transforms is None else transforms,
        seed=7,
        **options,  # type: ignore[arg-type]
    )


def loader(
    dataset: SegmentationDataset, sampler: EpochSampler, workers: int
) -> DataLoader[SegmentationBatch]:
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,  # type: ignore[arg-type]
        collate_fn=collate_segmentation,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def same(one: VoxelSample, two: VoxelSample) -> bool:
    pairs = zip(vars(one).values(), vars(two).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def same_batch(one: SegmentationBatch, two: SegmentationBatch) -> bool:
    assert one.labels is not None and two.labels is not None
    return (
        torch.equal(one.voxels.feats, two.voxels.feats)
        and torch.equal(one.voxels.coords, two.voxels.coords)
        and torch.equal(one.labels, two.labels)
        and torch.equal(one.inverse, two.inverse)
        and one.paths == two.paths
    )


def test_a_sample_depends_on_seed_epoch_and_index_alone(tree: Path) -> None:
    dataset = pipeline(tree)
    want = dataset[SampleKey(2, 3)]
    dataset[SampleKey(0, 1)]
    assert same(dataset[SampleKey(2, 3)], want)
    assert same(pickle.loads(pickle.dumps(dataset))[SampleKey(2, 3)], want)
    assert not same(dataset[SampleKey(1, 3)], want)
    dataset.set_epoch(2)
    assert same(dataset[3], want)


def test_workers_and_resume_give_the_same_batches(tree: Path) -> None:
    """Two epochs with persistent workers, by keys; then a resume in mid-epoch."""
    dataset = pipeline(tree)
    runs = []
    for workers in (0, 2):
        sampler = EpochSampler(len(dataset), 2, seed=7)
        load = loader(dataset, sampler, workers)
        run = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            run += list(load)
        runs.append(run)
    assert len(runs[0]) == len(runs[1]) == 6
    assert all(same_batch(a, b) for a, b in zip(*runs, strict=True))
    assert not same_batch(runs[0][0], runs[0][3])
    sampler = EpochSampler(len(dataset), 2, seed=7)
    sampler.set_epoch(1)
    sampler.set_start(1)
    rest = list(loader(dataset, sampler, 2))
    assert len(rest) == 2
    assert all(same_batch(a, b) for a, b in zip(rest, runs[0][4:], strict=True))


def test_set_epoch_reaches_persistent_workers(tree: Path) -> None:
    dataset = pipeline(tree)
    load: DataLoader[SegmentationBatch] = DataLoader(
        dataset,  # type: ignore[arg-type]
        collate_fn=collate_segmentation,
        num_workers=1,
        persistent_workers=True,
    )
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for index, batch in enumerate(load):
            assert same_batch(batch, collate_segmentation([dataset[SampleKey(epoch, index)]]))


def test_evaluation_keeps_every_raw_point(tree: Path) -> None:
    source = SemanticKITTI(tree, ["08"])
    sample = SegmentationDataset(source, VoxelizeSegmentation(0.5))[0]
    assert len(sample.inverse) == len(source[0]) == 60
    assert sample.inverse.min() == 0
    assert np.array_equal(sample.point_labels, source[0].labels)


def test_uncounted_samples_have_no_label(tree: Path) -> None:
    dataset = pipeline(tree, ())
    filler = dataset[SampleKey(0, 1, counted=False)]
    assert (filler.labels == 255).all() and (filler.point_labels == 255).all()
    assert np.array_equal(filler.coords, dataset[SampleKey(0, 1)].coords)


@pytest.mark.parametrize("kind", ["empty", "nan", "label length", "label id", "unreadable"])
def test_a_bad_sample_stops_with_its_path(tree: Path, kind: str) -> None:
    damage(tree, kind)
    dataset = pipeline(tree, ())
    with pytest.raises(BadSampleError, match=r"sequences/00/\w+/000001\."):
        dataset[SampleKey(0, 1)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_skipped_and_counted(
    tree: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    damage(tree, "truncated")
    dataset = pipeline(tree, (), on_bad_sample="skip")
    batches = list(loader(dataset, EpochSampler(5, 5, shuffle=False), workers))
    skipped = batches[0].skipped
    assert len(skipped) == 1 and "sequences/00/velodyne/000001.bin" in skipped[0]
    names = [Path(path).stem for path in batches[0].paths]
    assert names == ["000000", "000002", "000002", "000000", "000001"]
    if workers == 0:
        assert "skipped a bad sample" in caplog.text
    again = dataset[SampleKey(0, 1)]
    assert same(again, dataset[SampleKey(0, 1)])


def test_a_bad_second_scan_of_a_mix_is_skipped_too(tree: Path) -> None:
    damage(tree, "nan")
    dataset = pipeline(tree, segmentation_transforms(laser_mix=1.0), on_bad_sample="skip")
    samples = [dataset[SampleKey(epoch, 0)] for epoch in range(30)]
    assert any(sample.skipped for sample in samples)
    assert not all(sample.skipped for sample in samples)


def test_skipping_has_an_end(tree: Path) -> None:
    for scan in tree.glob("sequences/0*/velodyne/*.bin"):
        scan.write_bytes(b"")
    dataset = pipeline(tree, (), on_bad_sample="skip")
    with pytest.raises(BadSampleError, match=r"got 5 in a row; the first: .*000000\.bin.*check"):
        dataset[SampleKey(0, 0)]


def test_programming_errors_are_never_skipped(tree: Path) -> None:
    def broken(sample: PointCloudSample, rng: np.random.Generator) -> PointCloudSample:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        pipeline(tree, (broken,), on_bad_sample="skip")[SampleKey(0, 0)]


def test_own_sources_need_only_a_length_and_scans(
    make_sample: Callable[..., PointCloudSample],
) -> None:
    source = [make_sample(50, seed=i) for i in range(3)]
    dataset = SegmentationDataset(source, VoxelizeSegmentation(0.5))
    assert len(dataset) == 3 and dataset[2].path == "scan2"
    with pytest.raises(IndexError, match=r"0\.\.2"):
        dataset[3]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "at least one scan, got none"),
        ([0], {"on_bad_sample": "ignore"}, "on_bad_sample must be"),
        ([0], {"seed": -1}, "seed must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(source: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationDataset(source, VoxelizeSegmentation(), **options)


def test_published_transforms() -> None:
    names = [type(transform).__name__ for transform in segmentation_transforms()]
    assert names == ["RandomRotateZ", "RandomScale"]
    assert segmentation_transforms(rotation=0, scale=0) == []
    names = [type(transform).__name__ for transform in segmentation_transforms(**EVERYTHING)]
    assert names[:2] == ["LaserMix", "PolarMix"] and len(names) == 8
