"""The public operators and whole networks on a GPU against the CPU: streams, graphs, gradients, several devices.

What each kernel computes is tested in tests/cuda_emulator/, which runs on the GPU as well. Here it is what surrounds
them: torch's dispatcher, autograd, current stream and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import pointlib
from pointlib.ops import (
    bev_pool,
    boxes,
    coords,
    kernel_map,
    neighbors,
    norm,
    pooling,
    quantized,
    scatter,
    voxelize,
)
from pointlib.ops._cuda import engine
from pointlib.ops._cuda.cache import KernelCache
from pointlib.ops._cuda.nvrtc import Nvrtc
from pointlib.ops.fused_conv import fused_sparse_conv
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_generative_map, build_kernel_map
from pointlib.ops.sparse_conv import sparse_conv
from pointlib.tensor import SparseTensor
from tests.oracles import random_coords
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def scene(count: int = 3000, extent: int = 24, batch: int = 2) -> Tensor:
    """(N, 4) int32 distinct coordinates, in no order, some of them negative."""
    return random_coords(np.random.default_rng(0), count, extent, batch, lower=-5)


def on(device: torch.device, value: Any) -> Any:
    """Tensors of a structure, and kernel maps, on a device."""
    if isinstance(value, KernelMap):
        indices = (value.in_index, value.out_index, value.offset_ptr)
        sizes = (value.num_in, value.num_out, value.identity_tap)
        return KernelMap(*(t.to(device) for t in indices), *sizes)
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def leaves(result: Any) -> list[Any]:
    """What a result consists of, with the fields of kernel maps."""
    if isinstance(result, kernel_map.MappedSites):
        found = result.kernel_map
        numbers = [found.num_in, found.num_out, found.identity_tap]
        return [result.coords, found.in_index, found.out_index, found.offset_ptr, *numbers]
    return tree_leaves(result)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def rows(count: int, below: int) -> Tensor:
    """(count,) int64 indices, some of them -1."""
    return torch.randint(-1, below, (count,), generator=torch.Generator().manual_seed(count))


def some_boxes(count: int) -> Tensor:
    """(count, 7) boxes that overlap."""
    size = torch.tensor([8.0, 8.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    return draw(count, 7).mul(size).add(torch.tensor([0, 0, 0, 4.5, 3.0, 3.0, 0.0])).abs_()


def int8_conv(x: Tensor, weight: Tensor, found: KernelMap, scale: Tensor, shift: Tensor) -> Tensor:
    packed = quantized.pack_int8_weight(weight)
    return quantized.sparse_conv_int8(x, packed, found, scale, shift, activation="relu")


def pool_views(feats: Tensor, cells: Tensor) -> Tensor:
    return bev_pool.bev_pool(feats, bev_pool.build_bev_pool_plan(cells, 2, (16, 12, 1)))


C = scene()
N = len(C)
SUBMANIFOLD = build_kernel_map(C, ConvSpec(3)).kernel_map
STRIDED = build_kernel_map(C, ConvSpec(2, stride=2)).kernel_map
POINTS = torch.cat([torch.zeros(4000, 1), draw(4000, 3) * 3], 1)
CLOUDS = draw(2, 3, 500)
QUERIES = draw(2, 3, 77)
BYTES = torch.randint(-127, 128, (N, 32), dtype=torch.int8)
CELLS = torch.stack([torch.randint(-1, n, (5000,)) for n in (2, 16, 12, 1)], 1)

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "unique_coords": (coords.unique_coords, (C.repeat(2, 1),)),
    "lookup_coords": (coords.lookup_coords, (scene(800), C)),
    "submanifold": (build_kernel_map, (C, ConvSpec(3))),
    "submanifold 5": (build_kernel_map, (C, ConvSpec(5, dilation=2))),
    "strided": (build_kernel_map, (C, ConvSpec(2, stride=2))),
    "spconv": (build_kernel_map, (C, ConvSpec(3, stride=2, padding=1, relation="spconv"))),
    "generative": (build_generative_map, (C[:300], ConvSpec(3, stride=2))),
    "max pool": (pooling.sparse_max_pool, (draw(N, 24), STRIDED)),
    "average pool": (pooling.sparse_pool, (draw(N, 24), STRIDED, "avg")),
    "scatter_sum": (scatter.scatter_sum, (draw(N, 20), rows(N, 50), 60)),
    "scatter_mean": (scatter.scatter_mean, (draw(N, 20), rows(N, 50), 60)),
    "scatter_max": (scatter.scatter_max, (draw(N, 20), rows(N, 50), 60)),
    "gather_rows": (scatter.gather_rows, (draw(60, 20), rows(N, 50))),
    "voxelize": (voxelize.voxelize, (POINTS, draw(4000, 6), 0.4)),
    "voxelize max": (voxelize.voxelize, (POINTS, draw(4000, 6), 0.4, "max", [-4, -4, -2, 4, 4, 2])),
    "trilinear_map": (voxelize.trilinear_map, (POINTS, C)),
    "devoxelize": (voxelize.devoxelize, (draw(N, 20), rows(8 * N, N).view(N, 8), draw(N, 8))),
    "batch_norm": (norm.batch_norm, (draw(N, 24), draw(24), draw(24), 1e-5, draw(N, 24), 0.0)),
    "quantize": (quantized.quantize, (draw(N, 24), 0.02)),
    "int8": (int8_conv, (BYTES, BYTES[:864].view(27, 32, 32), SUBMANIFOLD, draw(32) / 3e4, draw(32))),
    "bev_pool": (pool_views, (draw(5000, 24), CELLS)),
    "farthest points": (neighbors.farthest_point_sampling, (CLOUDS, 60)),
    "ball_query": (neighbors.ball_query, (QUERIES, CLOUDS, 0.7, 16)),
    "knn": (neighbors.knn, (QUERIES, CLOUDS, 9)),
    "three_nn": (neighbors.three_nn, (QUERIES, CLOUDS)),
    "box_iou_3d": (boxes.box_iou_3d, (some_boxes(90), some_boxes(40))),
    "rotated_nms": (boxes.rotated_nms, (some_boxes(90), draw(90), 0.2)),
    "circle_nms": (boxes.circle_nms, (some_boxes(90), draw(90), 1.5)),
    "points_in_boxes": (boxes.points_in_boxes, (draw(4000, 3) * 4, some_boxes(40))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_agree_with_the_cpu(name: str) -> None:
    function, arguments = CASES[name]
    expected = leaves(function(*arguments))
    actual = leaves(function(*(on(DEVICE, argument) for argument in arguments)))
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        if not isinstance(theirs, Tensor):
            assert ours == theirs
            continue
        assert ours.device.type == DEVICE.type
        if theirs.is_floating_point():
            assert_close(ours.cpu(), theirs)
        else:
            assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("found", [SUBMANIFOLD, STRIDED, STRIDED.transpose()], ids=["3", "2", "up"])
@pytest.mark.parametrize("channels", [(4, 32), (32, 64), (37, 19)], ids=str)
def test_convolution_and_its_gradients(
    found: KernelMap, channels: tuple[int, int], dtype: torch.dtype
) -> None:
    c_in, c_out = channels
    inputs = (
        draw(found.num_in, c_in, dtype=dtype),
        draw(found.kernel_volume, c_in, c_out, dtype=dtype) / c_in,
        draw(c_out, dtype=dtype),
    )
    grad = draw(found.num_out, c_out, dtype=dtype)

    def run(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        x, weight, bias = (t.to(device, dtype).requires_grad_() for t in inputs)
        out = sparse_conv(x, weight, on(device, found), bias)
        return [out, *torch.autograd.grad(out, (x, weight, bias), grad.to(device, dtype))]

    exact = run(torch.device("cpu"), torch.float64)
    first, second = run(DEVICE, dtype), run(DEVICE, dtype)
    for ours, again, oracle in zip(first, second, exact, strict=True):
        assert torch.equal(ours, again), "the same bits every time"
        assert_close(ours.cpu(), oracle)


def test_fused_convolution() -> None:
    parts = [draw(N, 32), draw(N, 24)]
    arguments = (parts, draw(27, 56, 40) / 56, SUBMANIFOLD, draw(40), draw(40), draw(N, 40), 0.0)
    expected = fused_sparse_conv(*arguments)
    assert_close(fused_sparse_conv(*(on(DEVICE, a) for a in arguments)).cpu(), expected)


@pytest.mark.parametrize("name", ["minkunet", "spvcnn"])
def test_a_network_learns_as_on_the_cpu(name: str) -> None:
    model = pointlib.create_model(name, cr=0.25, num_classes=5)
    twin = pointlib.create_model(name, cr=0.25, num_classes=5)
    twin.load_state_dict(model.state_dict())
    for module in (*model.modules(), *twin.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each device draws its own numbers
    twin.to(DEVICE)
    x = SparseTensor(draw(N, 4), coords.unique_coords(C).coords)
    losses = [module(y).square().mean() for module, y in ((model, x), (twin, x.to(DEVICE)))]
    for loss in losses:
        loss.backward()
    assert_close(losses[1].cpu(), losses[0])
    for (key, ours), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            error = (ours.grad.cpu() - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-8)
            assert error < 1e-3, key  # forty layers of float32 in another order
    with torch.inference_mode():
        logits, expected = twin.eval()(x.to(DEVICE)).cpu(), model.eval()(x)
    assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_network_trains_under_autocast(dtype: torch.dtype) -> None:
    model = pointlib.create_model("minkunet", cr=0.25, num_classes=5).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = SparseTensor(draw(N, 4), C).to(DEVICE)
    labels = (x.coords[:, 3] % 5).abs().long()
    losses = []
    for _ in range(8):
        with torch.autocast(DEVICE.type, dtype):
            logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_operators_are_proper() -> None:
    found = on(DEVICE, SUBMANIFOLD)
    x, weight = draw(N, 8).to(DEVICE), draw(27, 8, 16).to(DEVICE)
    tensors = [x.requires_grad_(), weight.requires_grad_(), None]
    pairs = (found.in_index, found.out_index, found.offset_ptr)
    arguments = (*tensors, *pairs, found.num_out, 1, found.identity_tap)
    torch.library.opcheck(torch.ops.pointlib.sparse_conv.default, arguments)


def test_a_side_stream_is_used() -> None:
    x, weight, found = (on(DEVICE, t) for t in (draw(N, 32), draw(27, 32, 32), SUBMANIFOLD))
    expected = sparse_conv(x, weight, found)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is not enqueued behind it comes too early
        late = x + 0
        out = sparse_conv(late, weight, found)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "compiled meanwhile"])
def test_a_cuda_graph_records_convolutions(
    warm: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, found = (on(DEVICE, t) for t in (draw(N, 32), draw(27, 32, 32), SUBMANIFOLD))
    expected = sparse_conv(x, weight, found)  # also derives the row form of the map
    if not warm:
        monkeypatch.setattr(engine, "_backend", Nvrtc(KernelCache(tmp_path)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sparse_conv(x, weight, found)
    graph.replay()
    assert torch.equal(out, expected)
    x.mul_(2)
    graph.replay()
    torch.testing.assert_close(out, 2 * expected)


def test_another_device_of_several() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    x, weight = draw(N, 32), draw(27, 32, 32)
    out = sparse_conv(x.to(other), weight.to(other), on(other, SUBMANIFOLD))
    assert out.device == other and torch.cuda.current_device() == 0
    assert_close(out.cpu(), sparse_conv(x, weight, SUBMANIFOLD))


def test_tensors_on_several_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="must be on one device"):
        sparse_conv(draw(N, 8).to(DEVICE), draw(27, 8, 8).to(DEVICE), SUBMANIFOLD)


def test_running_out_of_memory_leaves_a_working_engine() -> None:
    x, weight, found = (on(DEVICE, t) for t in (draw(N, 32), draw(27, 32, 32), SUBMANIFOLD))
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free + 2**28) / total))
    try:
        with pytest.raises(torch.OutOfMemoryError):
            sparse_conv(x, weight.repeat(1, 1, 2**16), found)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert sparse_conv(x, weight, found).isfinite().all()
