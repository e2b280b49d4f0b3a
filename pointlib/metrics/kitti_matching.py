"""Which detection belongs to which object, as KITTI's benchmark decides it: the loops of `kitti_ap`, compiled by numba.

Arrays are flat over all images: image f holds true objects `truth_starts[f]:truth_starts[f + 1]`, found ones likewise,
and its (true, found) overlaps follow those of the images before it. States: 0 counts, 1 may be matched but does
not count, -1 does not exist.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def matched_scores(
    overlaps: np.ndarray,
    truth_starts: np.ndarray,
    found_starts: np.ndarray,
    truth_state: np.ndarray,
    found_state: np.ndarray,
    scores: np.ndarray,
    min_overlap: float,
) -> np.ndarray:
    """Scores of the detections that find an object if all detections are taken.

    Here, and only here, an object takes the detection of the highest score among those that overlap it enough.

    Returns:
        (T,) float64, in the order of the objects.
    """
    taken = np.zeros(len(scores), dtype=np.bool_)
    matched = np.empty(len(truth_state), dtype=np.float64)
    count, row = 0, 0
    for frame in range(len(truth_starts) - 1):
        begin, end = found_starts[frame], found_starts[frame + 1]
        for truth in range(truth_starts[frame], truth_starts[frame + 1]):
            best = -1
            if truth_state[truth] >= 0:
                for found in range(begin, end):
                    if found_state[found] < 0 or taken[found]:
                        continue
                    if overlaps[row + found - begin] > min_overlap and (
                        best < 0 or scores[found] > scores[best]
                    ):
                        best = found
            if best >= 0:
                taken[best] = True
                if truth_state[truth] == 0 and found_state[best] == 0:
                    matched[count] = scores[best]
                    count += 1
            row += end - begin
    return matched[:count]


@njit(cache=True, nogil=True)
def count_matches(
    overlaps: np.ndarray,
    truth_starts: np.ndarray,
    found_starts: np.ndarray,
    truth_state: np.ndarray,
    found_state: np.ndarray,
    scores: np.ndarray,
    min_overlap: float,
    truth_alpha: np.ndarray,
    found_alpha: np.ndarray,
    dont_care: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """Right and wrong detections at each threshold.

    An object takes the detection of the largest overlap among those that count; else the first that does not.

    Args:
        dont_care: (found,) share of each detection in a region where nothing is wrong.
        thresholds: (T,) detections of a lower score do not exist.

    Returns:
        (T, 3) float64: right, wrong, and the sum over the right ones of (1 + cos(error of alpha)) / 2.
    """
    counts = np.zeros((len(thresholds), 3), dtype=np.float64)
    taken = np.empty(len(scores), dtype=np.bool_)
    for t in range(len(thresholds)):
        taken[:] = False
        row = 0
        for frame in range(len(truth_starts) - 1):
            begin, end = found_starts[frame], found_starts[frame + 1]
            for truth in range(truth_starts[frame], truth_starts[frame + 1]):
                best = -1
                if truth_state[truth] >= 0:
                    for found in range(begin, end):
                        state, overlap = found_state[found], overlaps[row + found - begin]
                        if (
                            state < 0
                            or taken[found]
                            or scores[found] < thresholds[t]
                            or not overlap > min_overlap
                        ):
                            continue
                        if best < 0 or (
                            state == 0
                            and (found_state[best] == 1 or overlap > overlaps[row + best - begin])
                        ):
                            best = found
                if best >= 0:
                    taken[best] = True
                    if truth_state[truth] == 0 and found_state[best] == 0:
                        counts[t, 0] += 1
                        error = truth_alpha[truth] - found_alpha[best]
                        counts[t, 2] += (1 + np.cos(error)) / 2
                row += end - begin
            for found in range(begin, end):
                counts[t, 1] += (
                    found_state[found] == 0
                    and not taken[found]
                    and scores[found] >= thresholds[t]
                    and not dont_care[found] > min_overlap
                )
    return counts
