"""Concatenation and addition of sparse tensors."""

from __future__ import annotations

import pytest
import torch

from pointlib.nn.merge import add, cat, union_add
from pointlib.tensor import SparseTensor

A = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.int32)
B = torch.tensor([[0, 0, 0, 0], [1, -2, 0, 0]], dtype=torch.int32)


def tensor(coords: torch.Tensor, first: float, **kwargs: object) -> SparseTensor:
    feats = torch.tensor([[first], [first + 1]], dtype=torch.float32).requires_grad_()
    return SparseTensor(feats, coords, **kwargs)  # type: ignore[arg-type]


def test_cat_and_add_keep_everything_but_the_features() -> None:
    x = tensor(A, 1, stride=2, spatial_shape=9, batch_size=3)
    other = SparseTensor(torch.tensor([[5.0, 6], [7, 8]]), A.clone(), 2, 9, 3)
    joined = cat([x, other, x])
    assert joined.feats.tolist() == [[1, 5, 6, 1], [2, 7, 8, 2]]
    assert joined.sites is x.sites
    assert add(x, x).feats.tolist() == [[2], [4]] and add(x, x).sites is x.sites


def test_refuses_other_voxels() -> None:
    x = tensor(A, 1)
    for other in (tensor(B, 1), tensor(A.flip(0), 1), tensor(A, 1, stride=2)):
        with pytest.raises(ValueError, match=r"same voxels in the same order.*union_add"):
            cat([x, other])
        with pytest.raises(ValueError, match="same voxels in the same order"):
            add(x, other)
    with pytest.raises(ValueError, match="at least one tensor"):
        cat([])


def test_union_add() -> None:
    x, y = tensor(A, 1), tensor(B, 10)
    out = union_add(x, y)
    assert out.coords.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [1, -2, 0, 0]]
    assert out.feats.tolist() == [[12], [1], [11]]
    assert out.batch_size == 2
    out.feats.sum().backward()
    assert x.feats.grad is not None and x.feats.grad.tolist() == [[1], [1]]
    assert union_add(x, x).sites is x.sites
    empty = SparseTensor(torch.empty(0, 1), torch.empty(0, 4).int(), batch_size=1)
    assert union_add(empty, y).feats.tolist() == [[10], [11]]


def test_union_add_refuses_what_does_not_fit() -> None:
    x = tensor(A, 1, spatial_shape=8)
    for other in (
        tensor(B, 1, stride=2),
        tensor(A.flip(0), 1, spatial_shape=9),
        tensor(B, 1).with_feats(torch.ones(2, 2)),
    ):
        with pytest.raises(ValueError, match="same stride, channels and spatial_shape"):
            union_add(x, other)
