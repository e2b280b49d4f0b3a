"""Unique and look-up of packed coordinate keys on the CPU: the compiled engine, or the composition."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import coords as composition


@engine.or_composition(composition.unique_keys)
def unique_keys(keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct keys in ascending order, the inverse, the first row of each, and how many rows hold each."""
    keys, threads = keys.contiguous(), engine.num_threads()
    number = torch.empty((), dtype=torch.int64)
    handle = engine.call("pl_unique_keys", keys, len(keys), threads, number)
    try:
        unique, first, counts = (keys.new_empty(int(number)) for _ in range(3))
        inverse = torch.empty_like(keys)
        engine.call("pl_unique_keys_write", handle, unique, inverse, first, counts, threads)
    finally:
        engine.call("pl_unique_keys_free", handle)
    return unique, inverse, first, counts


@engine.or_composition(composition.lookup_keys)
def lookup_keys(query: Tensor, keys: Tensor) -> Tensor:
    """Row of `keys` that holds each queried key (the first one), or -1."""
    query, keys = query.contiguous(), keys.contiguous()
    rows = torch.empty_like(query)
    engine.call("pl_lookup_keys", query, len(query), keys, len(keys), engine.num_threads(), rows)
    return rows
