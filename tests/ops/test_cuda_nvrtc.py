"""The back end on a GPU without one: launches over a fake driver, and what it says when there is nothing to run on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import setup
from pointlib.ops._cuda import compiler, nvrtc

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a libcuda.so.1 that is none."""
    command = setup.find_compiler()
    if command is None:
        pytest.skip("needs a C++17 compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = HERE / "fake_driver" / "driver.cpp"
    flags = shlex.split("-std=c++17 -Wall -Wextra -Werror -shared -fPIC")
    subprocess.run([*command, *flags, str(source), "-o", str(folder / "libcuda.so.1")], check=True)
    return folder


def test_launches_over_a_fake_driver(fake_driver: Path) -> None:
    try:
        compiler.version()
    except ImportError as error:
        pytest.skip(str(error))
    path = os.pathsep.join([str(fake_driver), os.environ.get("LD_LIBRARY_PATH", "")])
    arguments = ["-q", "-p", "no:cacheprovider", str(HERE / "fake_driver" / "launches.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=HERE.parents[1],
        env={**os.environ, "LD_LIBRARY_PATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "require_cuda_core", lambda: None)
    monkeypatch.setattr(nvrtc, "_cuda_is_available", lambda: False)
    with pytest.raises(
        RuntimeError,
        match=f"must have an NVIDIA GPU.*torch {re.escape(torch.__version__)}.*nvidia-smi",
    ):
        nvrtc.Nvrtc()
