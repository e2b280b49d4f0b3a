"""The fused convolution of inference against its parts, one after the other, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops.fused_conv import fused_sparse_conv
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.tolerances import assert_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def kernel_map(spec: ConvSpec, count: int = 90) -> KernelMap:
    coords = oracles.random_coords(np.random.default_rng(0), count, 6, 2)
    return build_kernel_map(coords, spec).kernel_map


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def expected(
    feats: list[Tensor],
    weight: Tensor,
    pairs: KernelMap | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    slope: float,
) -> Tensor:
    x = torch.cat(feats, 1).double()
    if pairs is None:
        out = x @ weight[0].double()
    else:
        ptr = pairs.offset_ptr.tolist()
        taps = [t for t in range(len(ptr) - 1) for _ in range(ptr[t + 1] - ptr[t])]
        listed = zip(taps, pairs.in_index.tolist(), pairs.out_index.tolist(), strict=True)
        out = oracles.conv_of_pairs(x, weight, listed, pairs.num_out)
    out = out if scale is None else out * scale.double()
    out = out if shift is None else out + shift.double()
    out = out if residual is None else out + residual.double()
    return torch.nn.functional.leaky_relu(out, slope)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "channels", [((5,), 6), ((16, 16), 32), ((7, 1), 17), ((33, 64), 96), ((530,), 20)]
)
@pytest.mark.parametrize("steps", ["", "scale shift", "residual", "scale shift residual act"])
def test_equals_the_steps_one_by_one(
    dtype: torch.dtype, channels: tuple[tuple[int, ...], int], steps: str
) -> None:
    c_in, c_out = channels
    for pairs in (kernel_map(ConvSpec(3)), kernel_map(ConvSpec(2, 2)).transpose(), None):
        num_in, num_out = (40, 40) if pairs is None else (pairs.num_in, pairs.num_out)
        taps = 1 if pairs is None else pairs.kernel_volume
        feats = [draw(num_in, c, seed=i).to(dtype) for i, c in enumerate(c_in)]
        weight = draw(taps, sum(c_in), c_out, seed=3).to(dtype)
        scale = draw(c_out, seed=4) if "scale" in steps else None
        shift = draw(c_out, seed=5) if "shift" in steps else None
        residual = draw(num_out, c_out, seed=6).to(dtype) if "residual" in steps else None
        slope = 0.1 if "act" in steps else 1.0
        out = fused_sparse_conv(feats, weight, pairs, scale, shift, residual, slope)
        assert out.dtype == dtype
        assert_close(out, expected(feats, weight, pairs, scale, shift, residual, slope))
        if residual is not None:
            arguments = (feats, weight, pairs, scale, shift, residual, slope)
            again = fused_sparse_conv(*arguments, overwrite_residual=True)
            assert again is residual and torch.equal(again, out)


def test_weights_may_be_of_another_dtype_and_strided() -> None:
    pairs, feats = kernel_map(ConvSpec(3)), draw(90, 12)[: kernel_map(ConvSpec(3)).num_in]
    weight = draw(27, 20, 12).float().transpose(1, 2)
    for dtype in (torch.float32, torch.bfloat16):
        x = feats.to(dtype)
        out = fused_sparse_conv(x, weight, pairs)
        assert_close(out, expected([x], weight.to(dtype), pairs, None, None, None, 1.0))


@pytest.mark.parametrize("rows", [0, 1, 511, 513])
def test_any_number_of_rows(rows: int) -> None:
    coords = oracles.random_coords(np.random.default_rng(1), 2 * rows, 30)[:rows]
    pairs = build_kernel_map(coords, ConvSpec(3)).kernel_map
    feats, weight = draw(len(coords), 8).float(), draw(27, 8, 24).float()
    out = fused_sparse_conv(feats, weight, pairs, negative_slope=0.0)
    assert_close(out, expected([feats], weight, pairs, None, None, None, 0.0))


def test_a_nan_stays_a_nan() -> None:
    feats = torch.full((3, 4), float("nan"))
    for dtype in (torch.float32, torch.bfloat16):
        out = fused_sparse_conv(feats.to(dtype), torch.ones(1, 4, 33), None, negative_slope=0.0)
        assert out.isnan().all()


def test_refuses_what_does_not_fit() -> None:
    pairs, x, w = kernel_map(ConvSpec(3)), draw(kernel_map(ConvSpec(3)).num_in, 4), draw(27, 4, 5)
    for arguments, error, message in (
        (([x, x, x], w, pairs), ValueError, "feats must be one or two tensors"),
        ((x[1:], w, pairs), ValueError, "feats must be"),
        ((x, w[1:], pairs), ValueError, "weight must be"),
        (([x, x], w, pairs), ValueError, "weight must be"),
        ((x, w, pairs, draw(4)), ValueError, "scale must be"),
        ((x, w, pairs, None, draw(4)), ValueError, "shift must be"),
        ((x, w, pairs, None, None, draw(5, 5)), ValueError, "residual must be"),
        ((x, w, pairs, None, None, None, 1.0, True), ValueError, "residual must be given"),
        (([x, x.float()], draw(27, 8, 5), pairs), TypeError, "one floating dtype"),
        ((x, w.clone().requires_grad_(), pairs), RuntimeError, "inference only"),
    ):
        with pytest.raises(error, match=message):
            fused_sparse_conv(*arguments)


def test_opcheck() -> None:
    pairs = kernel_map(ConvSpec(3))
    index = (pairs.in_index, pairs.out_index, pairs.offset_ptr)
    arguments = ([draw(pairs.num_in, 4).float()], draw(27, 4, 5).float(), *index, pairs.num_out)
    torch.library.opcheck(
        torch.ops.pointlib.fused_sparse_conv.default, (*arguments, None, None, None, 0.0)
    )
    residual = draw(pairs.num_out, 5).float()
    torch.library.opcheck(
        torch.ops.pointlib.fused_sparse_conv_.default, (*arguments, None, None, residual, 0.0)
    )
