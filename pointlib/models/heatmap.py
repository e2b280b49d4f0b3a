"""Heatmaps that teach a head where the centres of boxes are: a Gaussian for each box, the largest value of each cell.

Zhou et al., Objects as Points, 2019, section 3; the radius is that of Law and Deng, CornerNet, ECCV 2018, section 3.2,
as every published detector computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_radius(size: Tensor, min_overlap: float) -> Tensor:
    """How far the centre of a box may move so that it still overlaps.

    CornerNet asks for the largest shift of corners that keeps an IoU of `min_overlap` in three arrangements, and takes
    the smallest. Its code, and all code since, solves `a r^2 - b r + c = 0` by `(b + sqrt(b * b - 4 * a * c)) / 2`: the
    division by a is missing, and where both roots are positive it is the larger. So the radius is not what the overlap
    says, but what published networks are trained with. Of the three it is always that of a box grown around the other,
    at most a quarter of length plus width, where the others are at least a half of it; only that one is computed.

    Args:
        size: (N, 2) floating length and width of boxes, in any order [cells].
        min_overlap: In (0, 1]; 0.1 in published networks.

    Returns:
        (N,) radius [cells].

    Example:
        >>> gaussian_radius(torch.tensor([[8.0, 4.0]]), 0.1)
        tensor([2.4000])
    """
    b = -2 * min_overlap * (size[:, 0] + size[:, 1])
    c = (min_overlap - 1) * size[:, 1] * size[:, 0]
    return (b + torch.sqrt(b**2 - 16 * min_overlap * c)) / 2


def draw_gaussians(
    shape: tuple[int, int, int, int],
    samples: Tensor,
    channels: Tensor,
    cells: Tensor,
    radii: Tensor,
) -> Tensor:
    """Heatmap of boxes: exp(-(dx^2 + dy^2) / (2 sigma^2)) around each cell, sigma a sixth of the diameter.

    Args:
        shape: B, C, X, Y of the map.
        samples: (M,) int64 sample of each box.
        channels: (M,) int64 channel of each box.
        cells: (M, 2) int64 cell of each centre along x and y, inside the map.
        radii: (M,) int64 >= 0: cells farther than this along x or y stay 0. The diameter is 2 * radius + 1.

    Returns:
        (B, C, X, Y) float32 in [0, 1], exactly 1 in the cells of centres; where Gaussians overlap, the largest.

    Example:
        >>> one = torch.tensor([0])
        >>> draw_gaussians((1, 1, 3, 3), one, one, torch.tensor([[1, 2]]), torch.tensor([1]))[0, 0, 1].tolist()
        [0.0, 0.1353352814912796, 1.0]
    """
    _, num_channels, size_x, size_y = shape
    heatmap = torch.zeros(shape, device=cells.device)
    if not len(cells):
        return heatmap
    reach = min(int(radii.max()), max(size_x, size_y))
    steps = torch.arange(-reach, reach + 1, device=cells.device)
    x, y = cells[:, :1] + steps, cells[:, 1:] + steps  # (M, W)
    near = steps.abs() <= radii[:, None]
    inside_x, inside_y = near & (x >= 0) & (x < size_x), near & (y >= 0) & (y < size_y)
    squared = (steps**2)[:, None] + steps**2  # (W, W)
    sigma = (2 * radii + 1).double() / 6
    values = torch.exp(-squared / (2 * sigma * sigma)[:, None, None])  # (M, W, W)
    values = values * (inside_x[:, :, None] & inside_y[:, None, :])
    planes = (samples * num_channels + channels) * size_x
    rows = (planes[:, None] + x.clamp(0, size_x - 1)) * size_y
    index = rows[:, :, None] + y.clamp(0, size_y - 1)[:, None, :]
    heatmap.view(-1).scatter_reduce_(0, index.flatten(), values.float().flatten(), "amax")
    return heatmap
