"""The inner loops over boxes, compiled by numba at their first call. Everything is computed in float64.

The overlap of two footprints is an integral and not a list of corners: in the frame of the smaller one, |x| <= X and
|y| <= Y, it is the sum over the edges of the other of -integral of clamp(y, -Y, Y) dx within |x| <= X. No case
distinction can go wrong there: every edge's share is a continuous function of its ends.
"""

from __future__ import annotations

from math import cos, sin

import numpy as np
from numba import njit

Box = tuple[float, float, float, float, float, float, float]
"""x, y, z, l, w, h, yaw: numbers in a tuple stay in registers, a row of an array would not."""

NOISE = 1e-14
"""Part of the smaller footprint that may be left over from rounding where two only touch."""


@njit(cache=True, nogil=True)
def box_of(boxes: np.ndarray, i: int) -> Box:
    """One row."""
    return (
        *(boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]),
        *(boxes[i, 4], boxes[i, 5], boxes[i, 6]),
    )


@njit(cache=True, nogil=True)
def clamp(value: float, bound: float) -> float:
    """The nearest number in [-bound, bound]."""
    return min(max(value, -bound), bound)


@njit(cache=True, nogil=True)
def edge_share(x0: float, y0: float, x1: float, y1: float, bound_x: float, bound_y: float) -> float:
    """Integral of clamp(y, -bound_y, bound_y) dx along an edge, over its part within |x| <= bound_x."""
    start, stop = clamp(x0, bound_x), clamp(x1, bound_x)
    if start == stop:
        return 0.0
    slope = (y1 - y0) / (x1 - x0)
    from_y, to_y = y0 + (start - x0) * slope, y1 + (stop - x1) * slope
    low, high = min(from_y, to_y), max(from_y, to_y)
    low_inside, high_inside = clamp(low, bound_y), clamp(high, bound_y)
    if low == high:
        return (stop - start) * low_inside
    below = max(min(high, -bound_y) - low, 0.0)
    above = max(high - max(low, bound_y), 0.0)
    within = (high_inside - low_inside) * 0.5 * (low_inside + high_inside)
    return (stop - start) * (((above - below) * bound_y + within) / (high - low))


@njit(cache=True, nogil=True)
def near(a: Box, b: Box) -> bool:
    """Whether two footprints may overlap: finite, with an area, and with circles that meet."""
    east, north = b[0] - a[0], b[1] - a[1]
    reach = 0.5 * ((a[3] + a[4]) + (b[3] + b[4]))
    solid = a[3] > 0 and a[4] > 0 and b[3] > 0 and b[4] > 0
    return solid and east * east + north * north <= reach * reach


@njit(cache=True, nogil=True)
def goes_first(a: Box, b: Box) -> bool:
    """Whether a gives the frame, so that (a, b) and (b, a) are computed alike: the smaller; then any fixed order."""
    if a[3] * a[4] != b[3] * b[4]:
        return a[3] * a[4] < b[3] * b[4]
    if a[0] != b[0]:
        return a[0] < b[0]
    if a[1] != b[1]:
        return a[1] < b[1]
    return a[3] < b[3] if a[3] != b[3] else a[6] <= b[6]


@njit(cache=True, nogil=True)
def footprint_overlap(frame: Box, other: Box) -> float:
    """Area that two boxes share, seen from above."""
    east, north = other[0] - frame[0], other[1] - frame[1]
    c, s = cos(frame[6]), sin(frame[6])
    x, y = c * east + s * north, c * north - s * east
    c, s = cos(other[6] - frame[6]), sin(other[6] - frame[6])
    along_x, along_y = 0.5 * other[3] * c, 0.5 * other[3] * s
    across_x, across_y = -0.5 * other[4] * s, 0.5 * other[4] * c
    # Corners in turn: front left, rear left, rear right, front right.
    x0, y0 = x + along_x + across_x, y + along_y + across_y
    x1, y1 = x - along_x + across_x, y - along_y + across_y
    x2, y2 = x - along_x - across_x, y - along_y - across_y
    x3, y3 = x + along_x - across_x, y + along_y - across_y
    half_x, half_y = 0.5 * frame[3], 0.5 * frame[4]
    integral = edge_share(x0, y0, x1, y1, half_x, half_y)
    integral += edge_share(x1, y1, x2, y2, half_x, half_y)
    integral += edge_share(x2, y2, x3, y3, half_x, half_y)
    integral += edge_share(x3, y3, x0, y0, half_x, half_y)
    area = frame[3] * frame[4]
    return min(-integral, area) if -integral > NOISE * area else 0.0


@njit(cache=True, nogil=True)
def iou(a: Box, b: Box, volume: bool) -> float:
    """Intersection over union of footprints, or of volumes; in [0, 1]."""
    if not near(a, b):
        return 0.0
    if not goes_first(a, b):
        a, b = b, a
    shared, size, other = footprint_overlap(a, b), a[3] * a[4], b[3] * b[4]
    if volume:
        up, half, other_half = b[2] - a[2], 0.5 * a[5], 0.5 * b[5]
        shared *= max(min(half, up + other_half) - max(-half, up - other_half), 0.0)
        size, other = size * a[5], other * b[5]
    if not shared > 0:
        return 0.0
    value = shared / (size + other - shared)
    return min(value, 1.0) if value > 0 else 0.0


@njit(cache=True, nogil=True)
def iou_matrix(boxes: np.ndarray, others: np.ndarray, volume: bool, out: np.ndarray) -> None:
    """`out[i, j]` = iou of boxes[i] and others[j]."""
    for i in range(len(boxes)):
        box = box_of(boxes, i)
        for j in range(len(others)):
            out[i, j] = iou(box, box_of(others, j), volume)


@njit(cache=True, nogil=True)
def suppress_rotated(
    boxes: np.ndarray, groups: np.ndarray, threshold: float, keep: np.ndarray
) -> None:
    """Clear `keep` (all true) of a box that overlaps an earlier kept one of its group by more than the threshold."""
    for i in range(len(boxes)):
        if not keep[i]:
            continue
        box = box_of(boxes, i)
        for j in range(i + 1, len(boxes)):
            if keep[j] and groups[i] == groups[j]:
                keep[j] = not iou(box, box_of(boxes, j), False) > threshold


@njit(cache=True, nogil=True)
def suppress_circle(
    centres: np.ndarray, groups: np.ndarray, radius: float, keep: np.ndarray
) -> None:
    """Clear `keep` (all true) of a centre within the radius of an earlier kept one of its group."""
    for i in range(len(centres)):
        if not keep[i]:
            continue
        for j in range(i + 1, len(centres)):
            if keep[j] and groups[i] == groups[j]:
                east, north = centres[j, 0] - centres[i, 0], centres[j, 1] - centres[i, 1]
                keep[j] = not east * east + north * north <= radius * radius


@njit(cache=True, nogil=True)
def contains(box: Box, c: float, s: float, x: float, y: float, z: float) -> bool:
    """Whether a point is in a box, faces included; c and s are the cosine and sine of its yaw."""
    east, north = x - box[0], y - box[1]
    return (
        abs(c * east + s * north) <= 0.5 * box[3]
        and abs(c * north - s * east) <= 0.5 * box[4]
        and abs(z - box[2]) <= 0.5 * box[5]
    )


@njit(cache=True, nogil=True)
def first_box(points: np.ndarray, boxes: np.ndarray, out: np.ndarray) -> None:
    """Lowest box that holds each point, or -1."""
    c, s = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    for n in range(len(points)):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        out[n] = -1
        for m in range(len(boxes)):
            if contains(box_of(boxes, m), c[m], s[m], x, y, z):
                out[n] = m
                break


@njit(cache=True, nogil=True)
def all_boxes(points: np.ndarray, boxes: np.ndarray, out: np.ndarray) -> None:
    """Whether each box holds each point."""
    c, s = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    for n in range(len(points)):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        for m in range(len(boxes)):
            out[n, m] = contains(box_of(boxes, m), c[m], s[m], x, y, z)
