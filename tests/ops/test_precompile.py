"""Compiling ahead of time: the command line, what is compiled, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pointlib.ops import precompile as module
from pointlib.ops._cuda import compiler, engine
from pointlib.ops._cuda.cache import KernelCache
from pointlib.ops.precompile import main, precompile

SOURCE = """template <int N>
__global__ void __launch_bounds__(32) fill(int* data) { data[threadIdx.x] = N; }
"""


@pytest.fixture(autouse=True)
def two_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small families in the place of the real ones."""
    try:
        compiler.version()
    except ImportError as error:
        pytest.skip(str(error))
    (tmp_path / "fill.cu").write_text(SOURCE)
    monkeypatch.setattr(engine, "SOURCES", tmp_path)
    monkeypatch.setenv("POINTLIB_CACHE", str(tmp_path / "cache"))

    def ones(capability: int) -> Iterator[tuple[str, str]]:
        yield "fill.cu", "fill<1>"
        if capability >= 80:
            yield "fill.cu", "fill<11>"

    def twos(capability: int) -> Iterator[tuple[str, str]]:
        yield "fill.cu", "fill<2>"

    monkeypatch.setattr(compiler, "families", lambda: {"ones": ones, "twos": twos})


def test_every_variant_of_every_architecture_is_kept(tmp_path: Path) -> None:
    assert precompile(["sm_75", "sm_90"], progress=False) == (5, 0, [])
    cache = KernelCache(tmp_path / "cache" / "kernels")
    for name in ("sm_75", "sm_90a"):
        kept = cache.read(cache.path("fill.cu", "fill<2>", name))
        assert kept is not None and kept.code.startswith(b"\x7fELF")
        assert kept.symbol == b"_Z4fillILi2EEvPi"
    assert precompile(["sm_75", "sm_87"], progress=False) == (3, 2, [])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "elsewhere"
    command = [
        "--arch",
        "sm_87",
        "sm_110",
        "--family",
        "twos",
        "--jobs",
        "1",
        "--cache",
        str(folder),
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "sm_87, sm_110: 2 kernels compiled in" in said
    assert f"0 were there, 0 failed; in {folder / 'kernels'}" in said
    assert len(list(folder.glob("kernels/*.kernel"))) == 2


def test_a_kernel_that_does_not_compile_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fill.cu").write_text(SOURCE + "#if __CUDA_ARCH__ == 800\n#error no luck\n#endif\n")
    assert main(["--arch", "sm_80", "sm_86", "--family", "ones"]) == 1
    said = capsys.readouterr()
    assert "no luck" in said.err and "fill<11>" in said.err
    assert "2 kernels compiled" in said.out and "2 failed" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "orin"], "must be named like sm_87, got 'orin'"),
        (["--arch", "sm_70"], "must have compute capability 7.5 or newer"),
        (["--arch", "sm_190"], "must be one that NVRTC"),
        (["--arch", "sm_87", "--family", "threes"], "must be one of ones, twos, got 'threes'"),
        (["--arch", "sm_87", "--cache", "FILE"], "FILE"),
    ],
)
def test_what_cannot_be_done_is_explained(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    assert words in capsys.readouterr().err


def test_the_default_is_this_machines_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_own_architectures", list)
    with pytest.raises(SystemExit):
        main([])
    assert "this machine has no GPU; name an architecture" in capsys.readouterr().err


def test_own_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_capability", [(9, 0), (8, 7), (9, 0)].__getitem__)
    assert module._own_architectures() == ["sm_87", "sm_90"]
