"""The hybrid dataflow: common taps in one output-stationary pass, rare taps pair by pair before it.

A tap that few rows have costs an output-stationary tile nearly as much as a tap that all rows have. So the pairs of
rare taps are multiplied by themselves, and the pass over the common taps starts from their sums. Where nothing but
the middle tap is common, that pass is a dense product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda.implicit_gemm import SMALL_CHANNELS, Epilogue, Pairs, convolve
from pointlib.ops._cuda.remembered import RememberedPair
from pointlib.ops._cuda.weight_stationary import fetch_on_demand, tap_sums

RARE = 16
"""A tap is rare if it feeds less than one row in so many: then most tiles of sorted rows are without it."""


class Parts(NamedTuple):
    """A kernel map cut in two, and the taps of each on the device, int64."""

    common: Pairs
    common_taps: Tensor
    rare: Pairs
    rare_taps: Tensor


def hybrid(feats: Tensor, weight: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
    """out[o] = bias + sum of feats[i] @ weight[k] over the pairs (i, o) of tap k.

    Args:
        feats: (N, C_in) float.
        weight: (K, C_in, C_out), the dtype of feats.
        bias: (C_out,), the dtype of feats, or None.
        pairs: Of the kernel map.

    Returns:
        (num_out, C_out), the dtype of feats; sums in float32, or float64 for float64.
    """
    epilogue = Epilogue(shift=bias)
    if feats.shape[1] in SMALL_CHANNELS or pairs.offset_ptr is None or not pairs.num_out:
        return convolve([feats], weight, pairs, epilogue)
    parts = split_taps(pairs)
    if not len(parts.rare_taps):
        return convolve([feats], weight, pairs, epilogue)
    if not len(parts.common_taps):
        return fetch_on_demand(feats, weight, bias, *pairs[:4])
    in_index, out_index, offset_ptr = parts.rare[:3]
    assert in_index is not None and out_index is not None and offset_ptr is not None
    rare = (weight.index_select(0, parts.rare_taps), in_index, out_index, offset_ptr)
    sums = tap_sums(feats, *rare, pairs.num_out)
    common = weight.index_select(0, parts.common_taps)
    return convolve([feats], common, parts.common, epilogue, earlier=sums)


class _Known(NamedTuple):
    """What was cut, to tell that it is still the same, and the parts."""

    offset_ptr: Tensor
    num_out: int
    parts: Parts


_known: RememberedPair[_Known] = RememberedPair()


def split_taps(pairs: Pairs) -> Parts:
    """Tell common taps from rare ones. Remembered for as long as the index tensors live and are not written to."""
    in_index, out_index, offset_ptr = pairs[:3]
    assert in_index is not None and out_index is not None and offset_ptr is not None
    known = _known.get(in_index, out_index)
    if (
        known is None
        or known.num_out != pairs.num_out
        or not torch.equal(known.offset_ptr, offset_ptr)
    ):
        known = _Known(offset_ptr.clone(), pairs.num_out, _split(pairs))
        _known.put(in_index, out_index, known)
    return known.parts


def _split(pairs: Pairs) -> Parts:
    assert pairs.offset_ptr is not None
    rare = pairs.offset_ptr.diff() * RARE < pairs.num_out
    common_taps, rare_taps = (~rare).nonzero().flatten(), rare.nonzero().flatten()
    if common_taps.tolist() == [pairs.identity_tap]:
        common = Pairs(None, None, None, pairs.num_out)
    else:
        common = _pairs_of(pairs, common_taps)
    assert pairs.in_index is not None
    device = pairs.in_index.device
    common_taps, rare_part = common_taps.to(device, non_blocking=True), _pairs_of(pairs, rare_taps)
    return Parts(common, common_taps, rare_part, rare_taps.to(device, non_blocking=True))


def _pairs_of(pairs: Pairs, taps: Tensor) -> Pairs:
    """The pairs of some taps, as a kernel map of those alone."""
    in_index, out_index, offset_ptr = pairs[:3]
    assert in_index is not None and out_index is not None and offset_ptr is not None
    ends = offset_ptr.tolist()
    cuts = [slice(ends[tap], ends[tap + 1]) for tap in taps.tolist()]
    sizes = offset_ptr.diff()[taps]
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    picked = [
        torch.cat([index[cut] for cut in cuts] or [index[:0]]) for index in (in_index, out_index)
    ]
    return Pairs(picked[0], picked[1], offsets, pairs.num_out)
