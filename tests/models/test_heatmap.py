"""Heatmaps against a loop over boxes and cells; the radius against the overlap it is said to keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointlib.models.box_coding import BevGrid
from pointlib.models.detection_targets import boxes_on_grid, centre_heatmap
from pointlib.models.heatmap import draw_gaussians, gaussian_radius
from pointlib.sensors import SceneTargets


def drawn_by_loop(
    shape: tuple[int, int, int, int], rows: list[tuple[int, int, int, int, int]]
) -> Tensor:
    heatmap = torch.zeros(shape, dtype=torch.float64)
    for sample, channel, x, y, radius in rows:
        sigma = (2 * radius + 1) / 6
        for i in range(max(x - radius, 0), min(x + radius + 1, shape[2])):
            for j in range(max(y - radius, 0), min(y + radius + 1, shape[3])):
                value = math.exp(-((i - x) ** 2 + (j - y) ** 2) / (2 * sigma**2))
                heatmap[sample, channel, i, j] = max(heatmap[sample, channel, i, j], value)
    return heatmap


@pytest.mark.parametrize("largest", [0, 3, 40])
def test_gaussians_are_those_of_a_loop(largest: int) -> None:
    shape = (2, 3, 13, 7)
    limits = torch.tensor([2, 3, 13, 7, largest + 1])
    rows = (torch.rand(15, 5) * limits).long()
    heatmap = draw_gaussians(shape, rows[:, 0], rows[:, 1], rows[:, 2:4], rows[:, 4])
    expected = drawn_by_loop(shape, [tuple(row) for row in rows.tolist()])
    torch.testing.assert_close(heatmap.double(), expected, rtol=0, atol=6e-8)
    assert heatmap.dtype == torch.float32
    assert int((heatmap == 1).sum()) == len({tuple(row[:4]) for row in rows.tolist()})


def test_no_boxes_draw_nothing() -> None:
    none = torch.zeros(0, dtype=torch.long)
    heatmap = draw_gaussians((1, 2, 3, 4), none, none, none.view(0, 2), none)
    assert heatmap.shape == (1, 2, 3, 4)
    assert not heatmap.any()


def test_radius_is_the_smallest_of_the_published_roots() -> None:
    size = torch.rand(200, 2, dtype=torch.float64) * 20 + 0.5
    total, area = size.sum(1), size.prod(1)
    for overlap in (0.01, 0.1, 0.25, 0.5, 0.9, 1.0):
        coefficients = [  # a, b, c of CornerNet's three arrangements
            (1, total, area * (1 - overlap) / (1 + overlap)),
            (4, 2 * total, (1 - overlap) * area),
            (4 * overlap, -2 * overlap * total, (overlap - 1) * area),
        ]
        roots = [(b + (b**2 - 4 * a * c).sqrt()) / 2 for a, b, c in coefficients]
        smallest = torch.stack(roots).min(0).values
        torch.testing.assert_close(gaussian_radius(size, overlap), smallest)
    wider = gaussian_radius(size * 2, 0.1)
    torch.testing.assert_close(wider, gaussian_radius(size, 0.1) * 2)
    torch.testing.assert_close(gaussian_radius(size.flip(1), 0.1), gaussian_radius(size, 0.1))


def test_boxes_off_the_grid_or_without_size_are_no_targets() -> None:
    grid = BevGrid.of_voxels((-4.0, 0.0, -1.0, 4.0, 6.0, 1.0), (0.5, 0.5, 0.5), 2)
    box = torch.tensor([0.5, 0.5, 0.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    boxes = box.repeat(7, 1)
    boxes[1, 0] = -4.5  # truncation towards zero would put it into cell 0
    boxes[2, 1] = 6.0
    boxes[3, 5] = 0.0
    boxes[4, 3] = torch.nan
    boxes[5, 0] = 3.999
    boxes[6, 7:] = torch.nan  # an unknown velocity is no reason
    targets = SceneTargets((boxes[:0], boxes), (torch.zeros(0).long(), torch.arange(7)))
    found = boxes_on_grid("test", targets, grid, 7)
    assert found.labels.tolist() == [0, 5, 6]
    assert found.samples.tolist() == [1, 1, 1]
    assert found.cells.tolist() == [[4, 0], [7, 0], [4, 0]]
    heatmap = centre_heatmap(found, grid, 2, 7, 0.1, 1)
    assert heatmap.shape == (2, 7, 8, 6)
    assert (heatmap == 1).nonzero().tolist() == [[1, 0, 4, 0], [1, 5, 7, 0], [1, 6, 4, 0]]


def test_targets_that_do_not_fit() -> None:
    grid = BevGrid.of_voxels((-4.0, 0.0, -1.0, 4.0, 6.0, 1.0), (0.5, 0.5, 0.5), 2)
    boxes = torch.ones(2, 9)
    for labels in (torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"labels must be in \[0, 3\).*same class names"):
            boxes_on_grid("Head.loss", SceneTargets((boxes,), (labels,)), grid, 3)
    with pytest.raises(ValueError, match=r"Head.loss.*\(M, 9\) boxes"):
        boxes_on_grid("Head.loss", SceneTargets((boxes[:, :7],), (labels,)), grid, 3)
