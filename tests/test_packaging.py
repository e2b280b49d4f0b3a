"""The package installs: built without torch and without a compiler, the wheel holds what it needs, versions agree."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import pointlib

ROOT = Path(__file__).resolve().parents[1]
BLOCKER = "raise ImportError('the build must not need this package')\n"


def literal_version() -> str:
    """The version as text in the source, without importing anything."""
    for node in ast.parse((ROOT / "pointlib" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(node.value))
    raise ValueError("pointlib/__init__.py must assign a literal to __version__")


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked sources, so that building leaves nothing behind in the repository."""
    copy = tmp_path_factory.mktemp("source") / "pointlib"
    unwanted = shutil.ignore_patterns(
        ".*cache",
        ".git",
        ".venv",
        "__pycache__",
        "build",
        "dist",
        "runs",
        "*.egg-info",
        ".hypothesis",
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    (copy / "cuda" / "probe.cu").write_text("// device code\n")
    (copy / "cuda" / "nested").mkdir()
    (copy / "cuda" / "nested" / "probe.cuh").write_text("// device code\n")
    return copy


@pytest.fixture(scope="module")
def built(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel and the source distribution, built where torch and compilers are out of reach."""
    poisoned, empty = tmp_path_factory.mktemp("poisoned"), tmp_path_factory.mktemp("no-programs")
    for package in ("torch", "numpy", "numba"):
        (poisoned / f"{package}.py").write_text(BLOCKER)
    build = (  # the backend changes sys.argv
        "import sys; from setuptools import build_meta as backend; out = sys.argv[1]; "
        "backend.build_sdist(out); backend.build_wheel(out)"
    )
    out = tmp_path_factory.mktemp("dist")
    environment = {
        **os.environ,
        "PYTHONPATH": str(poisoned),
        "PATH": str(empty),
        "CC": "",
        "CXX": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)],
        cwd=source_tree,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_wheel_is_pure_and_has_the_version(wheel: Path) -> None:
    assert wheel.name == f"pointlib-{literal_version()}-py3-none-any.whl"
    assert pointlib.__version__ == literal_version()


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = (ROOT / "pointlib").rglob("*")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.is_file() and path.suffix in {".py", ".yaml", ".json", ".typed"}
    }
    assert len(wanted) > 20
    assert wanted - held == set()


def test_wheel_holds_the_device_sources_and_no_other_folder(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel).namelist()
    for source in ("README.md", "probe.cu", "nested/probe.cuh"):
        assert f"pointlib/_cuda_src/{source}" in held
    tops = {name.split("/")[0] for name in held}
    assert tops == {"pointlib", f"pointlib-{literal_version()}.dist-info"}


def test_wheel_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import pointlib; print(pointlib.__file__); print(len(pointlib.list_models()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    location, number = done.stdout.split()
    assert Path(location).is_relative_to(tmp_path)
    assert int(number) > 0


def test_source_distribution_holds_every_tracked_file(built: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git clone to know the tracked files")
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    here = {name for name in tracked if (ROOT / name).exists()}
    assert here - held - {".gitignore"} == set()


def test_hooks_run_only_tools_of_the_dev_extra() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    development = (ROOT / "pyproject.toml").read_text().partition("dev = [")[2].partition("\n]")[0]
    for hook in hooks[0]["hooks"]:
        tool = hook["entry"].removeprefix("python -m ").split()[0].split(".")[0]
        assert re.search(rf'"{tool.replace("_", "-")}\b', development), hook["id"]


def test_make_explains_itself() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "test-fast", "lint", "format", "wheel", "clean"):
        assert f"make {target} " in done.stdout


OLD = '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1"\nexit 1\n'
WITHOUT_VENV = '#!/bin/sh\ncase "$2" in *version_info*) exit 0;; esac\nexit 1\n'


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (OLD, "PYTHON must be Python 3.10 or newer, got Python 3.8.1"),
        (WITHOUT_VENV, "apt install python3-venv"),
    ],
)
def test_make_names_what_python_lacks(tmp_path: Path, script: str, message: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "venv").exists()
