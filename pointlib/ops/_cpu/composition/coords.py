"""Unique and look-up of packed coordinate keys on the CPU, by sorting once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def unique_keys(keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct keys in ascending order, the inverse, the first row of each, and how many rows hold each."""
    order, ordered = sort_keys(keys.contiguous().numpy())
    starts = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
    heads = np.flatnonzero(starts)
    inverse = np.empty(len(ordered), dtype=np.int64)
    inverse[order] = np.cumsum(starts) - 1
    first = np.minimum.reduceat(order, heads) if len(heads) else order.copy()
    counts = np.diff(heads, append=len(ordered))
    return (
        torch.from_numpy(ordered[heads]),
        torch.from_numpy(inverse),
        torch.from_numpy(first),
        torch.from_numpy(counts),
    )


def lookup_keys(query: Tensor, keys: Tensor) -> Tensor:
    """Row of `keys` that holds each queried key (the first one), or -1."""
    unique, _, first, _ = (part.numpy() for part in unique_keys(keys))
    wanted = query.contiguous().numpy()
    if not len(unique):
        return torch.full_like(query, -1)
    slot = np.searchsorted(unique, wanted)
    slot[slot == len(unique)] = 0
    return torch.from_numpy(np.where(unique[slot] == wanted, first[slot], -1))


def sort_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort keys; equal keys come in any (but always the same) order.

    Returns:
        The (N,) int64 order and the keys in that order. Keys that ascend already cost one comparison each.
    """
    if np.all(keys[1:] >= keys[:-1]):
        return np.arange(len(keys)), keys
    order = np.argsort(keys)  # numpy's quicksort is vectorised, its stable sort is not
    return order, keys[order]
