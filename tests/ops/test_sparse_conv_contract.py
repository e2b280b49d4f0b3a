"""Sparse convolution: same bits run after run, autocast, registration, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops.kernel_map import ConvSpec, build_kernel_map
from pointlib.ops.sparse_conv import sparse_conv
from tests import oracles
from tests.ops.test_sparse_conv import cloud, operands
from tests.tolerances import assert_close

# ------------------------------------------------------------------------------------ determinism, autocast


def run_once(dtype: torch.dtype, threads: int, groups: int = 1) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        coords = oracles.random_coords(np.random.default_rng(11), 6000, extent=22, lower=-9)
        results = []
        for spec in (ConvSpec(3), ConvSpec(2, 2)):
            kernel_map = build_kernel_map(coords, spec).kernel_map
            tensors = operands(len(coords), spec, (48, 32), dtype, groups)
            out = sparse_conv(tensors[0], tensors[1], kernel_map, tensors[2], groups)
            out.square().sum().backward()
            results += [out.detach(), *(t.grad for t in tensors)]
        return results
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_run_after_run(dtype: torch.dtype, threads: int) -> None:
    first = run_once(dtype, threads)
    for _ in range(3):
        assert all(map(torch.equal, first, run_once(dtype, threads)))


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_rounding_at_most(dtype: torch.dtype, groups: int) -> None:
    for one, two in zip(run_once(dtype, 1, groups), run_once(dtype, 2, groups), strict=True):
        assert_close(two, one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_parameters(
    dtype: torch.dtype,
) -> None:
    coords, spec = cloud(12), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    tensors = operands(len(coords), spec, (5, 6), torch.float32)
    with torch.autocast("cpu", dtype):
        out = sparse_conv(tensors[0], tensors[1], kernel_map, tensors[2])
    assert out.dtype == dtype
    out.float().square().sum().backward()
    reference = [t.detach().double().requires_grad_() for t in tensors]
    expected = sparse_conv(reference[0], reference[1], kernel_map, reference[2])
    expected.square().sum().backward()
    assert_close(out, expected, dtype)
    for tensor, want in zip(tensors, reference, strict=True):
        assert tensor.grad.dtype == torch.float32
        assert_close(tensor.grad, want.grad, dtype)


def test_backward_inside_autocast_too() -> None:
    coords, spec = cloud(12), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    grads = []
    for inside in (True, False):
        tensors = operands(len(coords), spec, (5, 6), torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            out = sparse_conv(tensors[0], tensors[1], kernel_map, tensors[2])
            if inside:
                out.sum().backward()
        if not inside:
            out.sum().backward()
        grads.append([t.grad for t in tensors])
    assert all(map(torch.equal, *grads))


def test_autocast_takes_mixed_dtypes_as_linear_does() -> None:
    coords, spec = cloud(12), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    feats, weight, bias = operands(len(coords), spec, (5, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse_conv(feats.bfloat16(), weight, kernel_map, bias)
    assert out.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------- opcheck, errors


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_opcheck(count: int, groups: int, with_bias: bool) -> None:
    coords = oracles.random_coords(np.random.default_rng(13), count, extent=4, batch=2)
    ops = torch.ops.pointlib
    for spec in (ConvSpec(3), ConvSpec(2, 2)):
        kernel_map = build_kernel_map(coords, spec).kernel_map
        feats, weight, bias = operands(len(coords), spec, (4, 6), torch.float32, groups)
        grad = torch.randn(kernel_map.num_out, 6, requires_grad=True)
        index = (kernel_map.in_index, kernel_map.out_index, kernel_map.offset_ptr)
        tail = (groups, kernel_map.identity_tap)
        forward = (feats, weight, bias if with_bias else None, *index, kernel_map.num_out, *tail)
        for operator, arguments in (
            (ops.sparse_conv.default, forward),
            (ops.sparse_conv_grad_weight.default, (feats, grad, *index, *tail)),
        ):
            results = torch.library.opcheck(operator, arguments)
            assert set(results.values()) == {"SUCCESS"}


def test_wrong_arguments_are_refused_by_name() -> None:
    coords, spec = cloud(14), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    feats, weight, bias = (t.detach() for t in operands(len(coords), spec, (4, 6), torch.float32))
    cases = [
        (TypeError, "feats and weight must have one floating dtype", {"feats": feats.double()}),
        (TypeError, "floating dtype.*int32", {"feats": feats.int(), "weight": weight.int()}),
        (ValueError, r"feats must be \(\d+, C_in\).*got", {"feats": feats[:-1]}),
        (ValueError, "feats must be", {"feats": feats[None]}),
        (ValueError, r"weight must be \(27, 4, C_out\)", {"weight": weight[:8]}),
        (ValueError, r"weight must be \(27, 4, C_out\)", {"weight": weight[:, :3]}),
        (ValueError, "weight", {"weight": weight[0]}),
        (ValueError, r"weight must be \(27, 2, C_out\)", {"groups": 2}),
        (ValueError, "groups must divide", {"groups": 3}),
        (ValueError, "groups must divide", {"groups": 0}),
        (ValueError, r"bias must be \(6,\)", {"bias": bias[:5]}),
        (ValueError, r"bias must be \(6,\)", {"bias": bias[None]}),
        ((TypeError, ValueError), "bias", {"bias": bias.double()}),
        (ValueError, "one device", {"feats": feats.to("meta")}),
        (ValueError, "one device", {"weight": weight.to("meta")}),
    ]
    good = {"feats": feats, "weight": weight, "bias": bias, "kernel_map": kernel_map}
    for error, message, changes in cases:
        with pytest.raises(error, match=f"sparse_conv: .*{message}"):
            sparse_conv(**{**good, **changes})
    sparse_conv(**good)
