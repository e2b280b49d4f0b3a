"""The package installs: with and without a compiler, without torch, the wheel holds what it needs, versions agree."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import pointlib
import setup

ROOT = Path(__file__).resolve().parents[1]
Build = Callable[..., tuple[Path, subprocess.CompletedProcess[str]]]
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
        "*.so",
        ".hypothesis",
    )
    shutil.copytree(ROOT, copy, ignore=unwanted)
    (copy / "cuda" / "probe.cu").write_text("// device code\n")
    (copy / "cuda" / "nested").mkdir()
    (copy / "cuda" / "nested" / "probe.cuh").write_text("// device code\n")
    return copy


@pytest.fixture(scope="module")
def build(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Function that runs the build backend where torch is out of reach and returns the folder of what it made."""
    poisoned = tmp_path_factory.mktemp("poisoned")
    for package in ("torch", "numpy", "numba"):
        (poisoned / f"{package}.py").write_text(BLOCKER)

    def run(*products: str, **environment: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        out = tmp_path_factory.mktemp("dist")
        code = (  # the backend changes sys.argv
            "import sys; from setuptools import build_meta as backend; out, *products = sys.argv[1:]\n"
            "for product in products: getattr(backend, f'build_{product}')(out)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(out), *products],
            cwd=source_tree,
            env={**os.environ, "PYTHONPATH": str(poisoned), **environment},
            capture_output=True,
            text=True,
        )
        return out, done

    return run


@pytest.fixture(scope="module")
def built(
    build: Build,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder with the wheel and the source distribution, built where compilers are out of reach."""
    empty = str(tmp_path_factory.mktemp("no-programs"))
    out, done = build("sdist", "wheel", PATH=empty, CC="", CXX="", POINTLIB_BUILD_ENGINE="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pointlib is built WITHOUT its CPU engine" in done.stderr
    assert "no C++17 compiler works" in done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def compiler() -> str:
    found = setup.find_compiler()
    if found is None:
        pytest.skip("needs a C++17 compiler, setup.py finds none")
    return shlex.join(found)


@pytest.fixture(scope="module")
def engine_wheel(build: Build, compiler: str) -> Path:
    """The wheel that is built where there is a compiler."""
    out, done = build("wheel", POINTLIB_BUILD_ENGINE="require")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def run_unpacked(wheel: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Unpack a wheel and run code with what it holds."""
    zipfile.ZipFile(wheel).extractall(folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("POINTLIB_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


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


def test_the_installed_package_finds_its_device_sources(wheel: Path, tmp_path: Path) -> None:
    code = """
from pointlib.ops._cuda import compiler, engine
print(engine.SOURCES)
print(*sorted({source for variants in compiler.families().values() for source, _ in variants(87)}))
"""
    where, sources = run_unpacked(wheel, tmp_path, code).stdout.splitlines()
    assert Path(where) == tmp_path / "pointlib" / "_cuda_src"
    assert sources.split()
    assert [name for name in sources.split() if not (Path(where) / name).is_file()] == []


PROBE = """
import pointlib
from pointlib.ops._cpu import engine
print(pointlib.__file__, len(pointlib.list_models()), engine.INSTRUCTION_SET)
"""


def test_wheel_works_where_it_is_unpacked_and_says_once_that_it_is_slow(
    wheel: Path, tmp_path: Path
) -> None:
    done = run_unpacked(wheel, tmp_path, PROBE)
    location, number, instruction_set = done.stdout.split()
    assert Path(location).is_relative_to(tmp_path)
    assert int(number) > 0
    assert instruction_set == "composition"
    assert done.stderr.count("the CPU engine is not compiled") == 1


def test_wheel_with_the_engine_is_for_one_platform_and_every_python(
    engine_wheel: Path, wheel: Path
) -> None:
    *name, python, abi, system = engine_wheel.stem.split("-")
    assert name == ["pointlib", literal_version()]
    assert (python, abi) == ("py3", "none")
    assert system == sysconfig.get_platform().replace("-", "_").replace(".", "_")
    archive = zipfile.ZipFile(engine_wheel)
    (description,) = (n for n in archive.namelist() if n.endswith(".dist-info/WHEEL"))
    assert "Root-Is-Purelib: false" in archive.read(description).decode()
    more = set(archive.namelist()) - set(zipfile.ZipFile(wheel).namelist())
    assert more == {f"pointlib/{setup.ENGINE_LIBRARY}"}


def test_wheel_with_the_engine_loads_it_where_it_is_unpacked(
    engine_wheel: Path, tmp_path: Path
) -> None:
    done = run_unpacked(engine_wheel, tmp_path, PROBE + "print(engine.LIBRARY._name)")
    location, _, instruction_set, library = done.stdout.split()
    assert Path(location).is_relative_to(tmp_path)
    assert Path(library).is_relative_to(tmp_path)
    assert instruction_set in setup.INSTRUCTION_SETS
    assert done.stderr == ""


def test_an_editable_install_compiles_into_the_repository_and_none_removes_it(
    build: Build,
    source_tree: Path,
    compiler: str,
    tmp_path: Path,
) -> None:
    hasty = tmp_path / "hasty-compiler"
    hasty.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    hasty.chmod(0o755)
    library = source_tree / "pointlib" / setup.ENGINE_LIBRARY
    _, done = build("editable", POINTLIB_BUILD_ENGINE="require", CXX=str(hasty))
    assert done.returncode == 0, done.stderr
    assert library.exists()
    out, done = build("wheel", "editable", POINTLIB_BUILD_ENGINE="none")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.glob("*-any.whl")]
    assert not library.exists()


def test_a_compiler_that_fails_is_reported_and_does_not_prevent_a_working_package(
    build: Build,
    compiler: str,
    tmp_path: Path,
) -> None:
    failing = tmp_path / "failing-compiler"
    failing.write_text(
        f'#!/bin/sh\ncase "$*" in *csrc*) echo "no luck" >&2; exit 1;; esac\nexec {compiler} "$@"\n'
    )
    failing.chmod(0o755)
    out, done = build("wheel", POINTLIB_BUILD_ENGINE="auto", CXX=str(failing))
    assert done.returncode == 0, done.stderr
    assert "pointlib is built WITHOUT its CPU engine" in done.stderr
    assert "no luck" in done.stderr
    (path,) = out.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".so")]
    _, done = build("wheel", POINTLIB_BUILD_ENGINE="require", CXX=str(failing))
    assert done.returncode != 0
    assert "the CPU engine must be built, got: the compiler failed" in done.stderr
    assert "no luck" in done.stderr


def test_the_build_refuses_what_it_does_not_know(
    build: Build,
) -> None:
    _, done = build("wheel", POINTLIB_BUILD_ENGINE="yes")
    assert done.returncode != 0
    assert "POINTLIB_BUILD_ENGINE must be auto, require or none, got 'yes'" in done.stderr


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


def test_make_installs_again_when_the_engine_changes_and_cleans_it_up(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name in (*(f"pointlib/csrc/{n}" for n in ("a.cpp", "b.inc", "c.h")), "setup.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    library, stamp = tmp_path / "pointlib" / setup.ENGINE_LIBRARY, tmp_path / ".venv/installed"
    library.touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()

    def make(*arguments: str) -> str:
        stamped = ("make", f"INSTALLED={stamp}", *arguments)
        return subprocess.run(
            stamped, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    stamp.touch()
    assert "--editable" not in make("-n", "install")
    for name in ("a.cpp", "b.inc", "c.h"):
        assert "--editable" in make("-n", "-W", f"pointlib/csrc/{name}", "install")
        assert f"pointlib/csrc/{name}" in make("-n", "format")
    for folder in ("benchmarks", "tests", "tools"):
        (tmp_path / folder).mkdir()
    make("clean")
    assert not library.exists()
    assert "--editable" in make("-n", "install")


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
