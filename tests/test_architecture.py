"""The rules of the house, executed: who may import whom, what each file must have, that models and configs work.

Each rule is a function from a tree to a list of violations. The repository must have none; small broken trees at the
end of this file show that every rule can fail.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pointlib
from pointlib.tensor import SparseTensor
from tests.models.tiny_networks import check_learns_and_round_trips as check_round_trip
from tests.models.tiny_networks import is_multi_sensor, tiny_multi_sensor

ROOT = Path(__file__).resolve().parents[1]

# An import may only point to a lower row. What shares a row does not import each other.
FLOORS = [
    {"registry", "geometry", "files"},
    {"ops"},
    {"sites"},
    {"tensor", "sensors"},
    {"nn"},
    {"models", "data", "metrics"},
    {"compress", "compat"},
    {"engine", "deploy", "viz"},
    {"tools", "ros_node"},
]
SOURCES = ("pointlib", "tools", "tests", "benchmarks", "ros_node")
MAX_LINES = 400
NATIVE_SUFFIXES = {".cpp", ".h", ".inc", ".cu", ".cuh"}
VAGUE_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}
OPTIONAL_PACKAGES = (
    "lightning",
    "matplotlib",
    "mmcv",
    "nuscenes",
    "open3d",
    "rclpy",
    "tensorboard",
)


def python_files(root: Path, *folders: str) -> list[Path]:
    """Python files below these folders, sorted."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


# Floors


def imported_names(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import in a file, inside functions and `if TYPE_CHECKING` too."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def unit_of(path: Path, root: Path) -> str:
    """What a file belongs to: `pointlib/nn/conv.py` to nn, `tools/train.py` to tools."""
    parts = path.relative_to(root).with_suffix("").parts
    return parts[1] if parts[0] == "pointlib" else parts[0]


def floor_violations(root: Path) -> list[str]:
    """Imports that point sideways or upwards, and files that stand on no floor."""
    floor_of = {unit: number for number, units in enumerate(FLOORS) for unit in units}
    found = []
    for path in python_files(root, "pointlib", "tools", "ros_node"):
        unit, where = unit_of(path, root), path.relative_to(root)
        if unit == "__init__":  # the public names come from every floor
            continue
        if unit not in floor_of:
            found.append(f"{where}: stands on no floor; give it a place in FLOORS")
            continue
        for line, name in imported_names(path, root):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package != "pointlib" or name == "pointlib.__version__" or target == unit:
                continue
            if unit == "ros_node" and target != "deploy":
                found.append(f"{where}:{line}: ros_node imports pointlib.deploy only, got {name}")
            elif unit in FLOORS[-1]:
                continue
            elif target not in floor_of:
                found.append(
                    f"{where}:{line}: {name} must be imported from the module that defines it"
                )
            elif floor_of[target] >= floor_of[unit]:
                found.append(
                    f"{where}:{line}: {unit} must not import {name}, which is not on a lower floor"
                )
    return found


def test_imports_point_to_lower_floors() -> None:
    violations = floor_violations(ROOT)
    assert not violations, "\n".join(violations)


def test_importing_pointlib_imports_nothing_optional() -> None:
    code = f"import sys, pointlib; print(*(m for m in {OPTIONAL_PACKAGES!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


# Files


def file_violations(root: Path) -> list[str]:
    """Files that are too long, vaguely named, not ASCII, or do not say what they are for."""
    found = []
    for path in python_files(root, *SOURCES):
        where, text = path.relative_to(root), path.read_text(encoding="utf-8")
        num_lines = text.count("\n")
        if num_lines > MAX_LINES:
            found.append(
                f"{where}: must have at most {MAX_LINES} lines, got {num_lines}; split it by meaning"
            )
        if VAGUE_NAMES & {path.stem, *where.parent.parts}:
            found.append(f"{where}: must be named after what it holds")
        if not text.isascii():
            found.append(f"{where}: must be ASCII")
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            found.append(f"{where}: must open with what it is for")
    return found


def native_violations(root: Path) -> list[str]:
    """C++ and CUDA files that are too long, vaguely named, not ASCII, or do not say what they are for."""
    found = []
    for path in sorted(p for f in ("pointlib", "cuda") for p in (root / f).rglob("*")):
        if path.suffix not in NATIVE_SUFFIXES:
            continue
        where, text = path.relative_to(root), path.read_text(encoding="utf-8")
        num_lines = text.count("\n")
        if num_lines > MAX_LINES:
            found.append(
                f"{where}: must have at most {MAX_LINES} lines, got {num_lines}; split it by meaning"
            )
        if path.stem in VAGUE_NAMES:
            found.append(f"{where}: must be named after what it holds")
        if not text.isascii():
            found.append(f"{where}: must be ASCII")
        if not text.startswith("// "):
            found.append(f"{where}: must open with what it is for")
    return found


def docstring_violations(root: Path) -> list[str]:
    """Public functions and classes of public modules that have no docstring."""
    found = []
    for path in python_files(root, "pointlib"):
        where = path.relative_to(root)
        if any(part.startswith("_") and part != "__init__.py" for part in where.parts):
            continue
        for node in parse(path).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            )
            if public and not ast.get_docstring(node):
                found.append(f"{where}:{node.lineno}: {node.name} must have a docstring")
    return found


def print_violations(root: Path) -> list[str]:
    """Calls of print in the library: it logs, only tools print."""
    return [
        f"{path.relative_to(root)}:{node.lineno}: print must be a logging call"
        for path in python_files(root, "pointlib")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


def untested_operators(root: Path) -> list[str]:
    """Operator families without a test file of the same name."""
    return [
        f"{path.relative_to(root)}: must be tested in tests/ops/test_{path.stem}.py"
        for path in sorted((root / "pointlib" / "ops").glob("*.py"))
        if not path.stem.startswith("_")
        and not (root / "tests/ops" / f"test_{path.stem}.py").is_file()
    ]


@pytest.mark.parametrize(
    "rule",
    [
        file_violations,
        native_violations,
        docstring_violations,
        print_violations,
        untested_operators,
    ],
)
def test_every_file_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    violations = rule(ROOT)
    assert not violations, "\n".join(violations)


# Models and configs


# Weights that published checkpoints hold although the published forward pass never uses them.
IDLE_BY_PUBLICATION = {"minkunet": "point_transforms."}


def tiny_arguments(name: str) -> dict[str, Any]:
    """Arguments that make a registered model as small as its constructor allows."""
    if is_multi_sensor(name):
        return tiny_multi_sensor(name)
    accepted = pointlib.model_info(name).arguments
    return {key: value for key, value in {"cr": 0.25, "num_classes": 5}.items() if key in accepted}


@pytest.fixture(scope="module")
def tiny_scene() -> SparseTensor:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(16**3, generator=generator)[:300]
    xyz = torch.stack([cells // 256, cells // 16 % 16, cells % 16], 1)
    coords = torch.cat([(torch.arange(300) % 2)[:, None], xyz], 1).int()
    return SparseTensor(torch.randn(300, 4, generator=generator), coords)


@pytest.mark.parametrize("name", [n for n in pointlib.list_models() if is_multi_sensor(n)])
def test_every_multi_sensor_model_runs_learns_and_round_trips(name: str) -> None:
    check_round_trip(name, tiny_arguments(name))


@pytest.mark.parametrize("name", [n for n in pointlib.list_models() if not is_multi_sensor(n)])
def test_every_model_runs_learns_and_round_trips(name: str, tiny_scene: SparseTensor) -> None:
    arguments = tiny_arguments(name)
    model = pointlib.create_model(name, **arguments)
    logits = model(tiny_scene)
    assert logits.shape == (len(tiny_scene), arguments.get("num_classes", logits.shape[1]))
    logits.square().mean().backward()
    allowed = IDLE_BY_PUBLICATION.get(name.split("_cr")[0])
    for key, parameter in model.named_parameters():
        if allowed and key.startswith(allowed):
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key

    torch.manual_seed(1)
    twin = pointlib.create_model(name, **arguments)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(tiny_scene), model.eval()(tiny_scene))


CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.y*ml"))


def test_there_are_configs() -> None:
    assert CONFIGS


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_loads_and_binds(config: str) -> None:
    from pointlib.engine.cli import load_config

    load_config(ROOT / config)


# Every rule can fail


def write(root: Path, path: str, text: str) -> Path:
    """Write a file of a synthetic tree."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        (
            "pointlib/ops/a.py",
            "import torch\nimport pointlib.nn.conv",
            "a.py:2: ops must not import pointlib.nn",
        ),
        (
            "pointlib/ops/a.py",
            "def f():\n    from pointlib.models import x",
            "a.py:2: ops must not",
        ),
        (
            "pointlib/ops/a.py",
            "if TYPE_CHECKING:\n    from pointlib import tensor",
            "a.py:2: ops must not",
        ),
        (
            "pointlib/ops/a.py",
            "import importlib\nimportlib.import_module('pointlib.nn')",
            "a.py:2: ops must not",
        ),
        (
            "pointlib/ops/a.py",
            "from ..tensor import SparseTensor",
            "ops must not import pointlib.tensor",
        ),
        ("pointlib/ops/_cpu/a.py", "from ... import nn", "ops must not import pointlib.nn"),
        (
            "pointlib/data/a.py",
            "from pointlib.models import x",
            "data must not import pointlib.models.x",
        ),
        (
            "pointlib/geometry.py",
            "from pointlib.registry import Registry",
            "geometry must not import",
        ),
        (
            "pointlib/nn/a.py",
            "from pointlib import SparseTensor",
            "from the module that defines it",
        ),
        ("pointlib/nn/a.py", "import pointlib", "from the module that defines it"),
        ("pointlib/extras/a.py", "", "stands on no floor"),
        ("ros_node/a.py", "from pointlib.models import x", "ros_node imports pointlib.deploy only"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    write(tmp_path, path, source)
    violations = floor_violations(tmp_path)
    assert len(violations) == 1
    assert complaint in violations[0]


def test_right_imports_pass(tmp_path: Path) -> None:
    write(tmp_path, "pointlib/__init__.py", "from pointlib.models import create_model")
    write(
        tmp_path,
        "pointlib/nn/a.py",
        "from pointlib.tensor import S\nfrom pointlib.nn import b\nfrom . import c",
    )
    write(tmp_path, "pointlib/ops/_cpu/a.py", "from ..coords import x\nfrom pointlib.ops import y")
    write(tmp_path, "pointlib/engine/a.py", "from pointlib import __version__\nimport torch.nn")
    write(tmp_path, "tools/a.py", "from pointlib import create_model")
    write(tmp_path, "ros_node/a.py", "from pointlib.deploy import Predictor")
    assert floor_violations(tmp_path) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (file_violations, "pointlib/a.py", '"""A."""\n' + "x = 1\n" * MAX_LINES),
        (file_violations, "pointlib/nn/utils.py", '"""A."""\n'),
        (file_violations, "pointlib/utils/a.py", '"""A."""\n'),
        (file_violations, "tests/a.py", '"""caf\u00e9."""\n'),
        (file_violations, "tools/a.py", "x = 1\n"),
        (native_violations, "pointlib/csrc/a.cpp", "// A.\n" + "int x;\n" * MAX_LINES),
        (native_violations, "pointlib/csrc/helpers.h", "// A.\n"),
        (native_violations, "cuda/a.cu", "// caf\u00e9\n"),
        (native_violations, "pointlib/csrc/a.inc", "int x;\n"),
        (docstring_violations, "pointlib/a.py", "class Public:\n    x = 1\n"),
        (docstring_violations, "pointlib/__init__.py", "def public(): return 1\n"),
        (print_violations, "pointlib/a.py", "def f():\n    print('x')\n"),
        (untested_operators, "pointlib/ops/a.py", ""),
    ],
)
def test_a_broken_file_is_found(
    tmp_path: Path, rule: Callable[[Path], list[str]], path: str, text: str
) -> None:
    write(tmp_path, path, text)
    assert len(rule(tmp_path)) == 1
