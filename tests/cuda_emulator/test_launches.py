"""Launches of the emulator: arguments, limits, which kernels may run, schedules, and how kernels are built and kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from pointlib.ops._cuda import engine
from tests.cuda_emulator import building
from tests.cuda_emulator.building import EmulatorError
from tests.cuda_emulator.emulator import Emulator, schedules

KERNELS = Path(__file__).parent / "kernels"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def with_compiler() -> None:
    """Skip where nothing can be built."""
    if building.compiler() is None:
        pytest.skip("needs a C++ compiler: install g++ or name one by CXX")


def launch_arguments(
    *arguments: engine.Argument, grid: int = 1, block: int = 64, shared_bytes: int = 0
) -> None:
    """Launch `arguments(const float* a, const float* b, float* out, int64_t n, float factor)`."""
    listed = ("cuda_functions.cu", "pointlib::arguments")
    device = Emulator(90, KERNELS, lambda _: [listed])
    device.launch(*listed, (grid, 1, 1), block, shared_bytes, arguments, CPU)


def test_arguments_arrive() -> None:
    a, b, out = torch.randn(50), torch.randn(50), torch.full((50,), torch.nan)
    launch_arguments(a, b, out, 49, -2.5)
    assert torch.equal(out[:49], (a + b)[:49] * -2.5) and out[49].isnan()
    launch_arguments(a, None, out, 50, 1.0)
    assert torch.equal(out, a)


def test_tensors_that_share_memory_share_it_in_the_emulator() -> None:
    x = torch.randn(100)
    expected = torch.cat([(x[:25] + x[50:75]) * 2, x[25:]])
    launch_arguments(x, x[50:75], x[:25], 25, 2.0)
    assert torch.equal(x, expected)


def test_neighbouring_views_do_not_hide_each_other() -> None:
    x = torch.randn(64)
    with pytest.raises(EmulatorError, match="race, or use of undefined memory"):
        launch_arguments(x[:31], x[31:63], torch.empty(32), 32, 1.0)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, 7, "argument 0 must be a tensor of 4-byte float elements or None, got int 7"),
        (0, torch.zeros(4).double(), "must be a tensor of 4-byte float .* got float64"),
        (0, torch.zeros(4).int(), "must be a tensor of 4-byte float .* got int32"),
        (3, torch.zeros(4), "argument 3 must be an int that fits int64_t, got float32"),
        (3, 4.0, "must be an int that fits int64_t, got float 4.0"),
        (3, True, "must be an int that fits int64_t, got bool True"),
        (3, 2**63, "must be an int that fits int64_t, got int 9223372036854775808"),
        (3, None, "must be an int that fits int64_t, got NoneType None"),
        (4, 1, "argument 4 must be a float, got int 1"),
    ],
)
def test_wrong_arguments_are_refused(position: int, value: engine.Argument, message: str) -> None:
    arguments: list[engine.Argument] = [torch.zeros(4), None, torch.zeros(4), 4, 1.0]
    arguments[position] = value
    with pytest.raises(EmulatorError, match=message):
        launch_arguments(*arguments)


def test_a_wrong_number_of_arguments_is_refused() -> None:
    with pytest.raises(EmulatorError, match="must get 5 arguments, got 2"):
        launch_arguments(torch.zeros(4), None)


@pytest.mark.parametrize(
    ("block", "shared_bytes", "message"),
    [
        (1025, 0, "block must be 1 to 1024 threads, got 1025"),
        (0, 0, "block must be 1 to 1024"),
        (32, (227 << 10) + 1, "shared_bytes must be 0 to"),
    ],
)
def test_launches_beyond_the_device_are_refused(
    block: int, shared_bytes: int, message: str
) -> None:
    arguments = (torch.zeros(4), None, torch.zeros(4), 4, 1.0)
    with pytest.raises(EmulatorError, match=message):
        launch_arguments(*arguments, block=block, shared_bytes=shared_bytes)
    launch_arguments(*arguments, block=1024, shared_bytes=227 << 10)


@pytest.mark.parametrize(("kernel", "bound"), [("bounded<float>", 64), ("bounded<int, 4>", 128)])
def test_launch_bounds_hold(kernel: str, bound: int) -> None:
    listed = ("cuda_functions.cu", f"pointlib::{kernel}")
    device = Emulator(90, KERNELS, lambda _: [listed])
    out = torch.zeros(256, dtype=torch.float32 if "float" in kernel else torch.int32)
    with pytest.raises(EmulatorError, match=f"at most {bound} threads, its __launch_bounds__, got"):
        device.launch(*listed, (1, 1, 1), bound + 32, 0, (out,), CPU)
    device.launch(*listed, (2, 1, 1), bound, 0, (out,), CPU)
    assert out.sum() == 2 * bound


def test_a_kernel_that_no_family_lists_is_refused() -> None:
    with pytest.raises(EmulatorError, match=r"must be listed by its family's variants\(\d+\)"):
        Emulator(90).launch("types.cuh", "pointlib::f", (1, 1, 1), 32, 0, (), CPU)


def test_a_source_that_does_not_compile_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.cu").write_text(
        "namespace pointlib {\n__global__ void f(float* x) { x[0] = misspelt; }\n}\n"
    )
    device = Emulator(90, tmp_path, lambda _: [("broken.cu", "pointlib::f")])
    with pytest.raises(
        EmulatorError, match=r"does not compile:\n(.|\n)*broken.cu:2(.|\n)*misspelt"
    ):
        device.launch("broken.cu", "pointlib::f", (1, 1, 1), 1, 0, (torch.zeros(1),), CPU)


def test_static_shared_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "local.cu").write_text(
        "namespace pointlib {\n__global__ void f(float* x) {\n  __shared__ float tile[4];\n"
        "  tile[0] = x[0];\n  x[0] = tile[0];\n}\n}\n"
    )
    device = Emulator(90, tmp_path, lambda _: [("local.cu", "pointlib::f")])
    with pytest.raises(EmulatorError, match="does not compile"):
        device.launch("local.cu", "pointlib::f", (1, 1, 1), 1, 0, (torch.zeros(1),), CPU)


def test_schedules_are_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POINTLIB_EMULATOR_SCHEDULES", raising=False)
    assert schedules() == (0, 1)
    monkeypatch.setenv("POINTLIB_EMULATOR_SCHEDULES", "0,1,7")
    assert schedules() == (0, 1, 7)


# Building


def test_a_built_kernel_is_found_again_and_a_changed_one_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building.runtime()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "included.cuh").write_text("// A constant.\nconstexpr float VALUE = 1.0f;\n")
    (tmp_path / "a.cu").write_text(
        '#include "included.cuh"\nnamespace pointlib {\n'
        "__global__ void f(float* x) { x[0] = VALUE; }\n}\n"
    )

    def value() -> float:
        out = torch.zeros(1)
        device = Emulator(90, tmp_path, lambda _: [("a.cu", "pointlib::f")])
        device.launch("a.cu", "pointlib::f", (1, 1, 1), 1, 0, (out,), CPU)
        return out.item()

    assert value() == value() == 1.0
    assert len(list(building.cache_folder().iterdir())) == 1
    (tmp_path / "included.cuh").write_text("// A constant.\nconstexpr float VALUE = 2.0f;\n")
    assert value() == 2.0
    assert len(list(building.cache_folder().iterdir())) == 2
