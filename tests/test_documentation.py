"""What the pages promise exists: every path, link, name of pointlib and `make` target that they mention."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "cuda/README.md", "ros_node/README.md")
PATH = re.compile(
    r"(?<![\w/.<-])((?:\.ci|benchmarks|configs|cuda|docs|pointlib|ros_node|tests|tools)/[\w./*<>-]*)"
)
DOTTED = re.compile(r"(?<![\w./-])pointlib(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
TARGET = re.compile(r"(?:`make ([a-z-]+)|^make ([a-z-]+)(?: +[A-Z]+=.*| +#.*)?$)", re.MULTILINE)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def missing_paths(root: Path, page: Path) -> list[str]:
    """Paths and links on a page that lead nowhere. `<name>` stands for any text, `*` for what exists."""
    text = page.read_text(encoding="utf-8")
    missing = []
    for path in (match.rstrip(".") for match in PATH.findall(text)):
        known = path.split("<")[0].rpartition("/")[0] if "<" in path else path
        if not list(root.glob(known.rstrip("/"))):
            missing.append(path)
    links = [
        link for link in LINK.findall(text) if not link.startswith(("http:", "https:", "mailto:"))
    ]
    return missing + [link for link in links if not (page.parent / link).exists()]


def resolve(dotted: str) -> Any:
    """The module, or the attribute of one, that a dotted name means."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, attribute = dotted.rpartition(".")
        return getattr(resolve(module), attribute)


def exists(dotted: str) -> bool:
    """Whether a dotted name means anything."""
    try:
        resolve(dotted)
    except AttributeError:
        return False
    return True


def missing_names(page: Path) -> list[str]:
    """Names of pointlib on a page, in prose or imported by an example, that do not exist."""
    text = page.read_text(encoding="utf-8")
    names = DOTTED.findall(text)
    for block in PYTHON_BLOCK.findall(text):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pointlib":
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if not exists(name)]


def missing_targets(root: Path, page: Path) -> list[str]:
    """`make` targets on a page that the Makefile does not have."""
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    known = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    mentioned = ["".join(pair) for pair in TARGET.findall(page.read_text(encoding="utf-8"))]
    return [target for target in mentioned if target not in known]


PAGE_FILES = sorted(page for pattern in PAGES for page in ROOT.glob(pattern))


@pytest.mark.parametrize("page", PAGE_FILES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_only_what_exists(page: Path) -> None:
    assert missing_paths(ROOT, page) == []
    assert missing_names(page) == []
    assert missing_targets(ROOT, page) == []


def test_a_broken_page_is_found(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("demo:\n\ttrue\n")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train.py").touch()
    good = tmp_path / "good.md"
    good.write_text(
        "Run `python tools/train.py` or `make demo`, see [it](tools/train.py#x), tools/<name>.py, tools/*.py and\n"
        "`pointlib.registry.Registry.create`, https://example.org/tools/none.py.\nmake sure of it\nmake demo TORCH=x\n"
        "```python\nfrom pointlib.registry import Registry\n```\n",
    )
    assert (
        missing_paths(tmp_path, good)
        == missing_names(good)
        == missing_targets(tmp_path, good)
        == []
    )
    bad = tmp_path / "bad.md"
    bad.write_text(
        "`tools/tran.py`, docs/<page>.md, configs/*.yaml, [it](gone.md), `pointlib.registry.Rexistry`,\n"
        "pointlib.nowhere.x, `make dmeo`.\nmake tset  # all\n```python\nfrom pointlib.registry import Nothing\n```\n",
    )
    assert missing_paths(tmp_path, bad) == [
        "tools/tran.py",
        "docs/<page>.md",
        "configs/*.yaml",
        "gone.md",
    ]
    gone = ["pointlib.registry.Rexistry", "pointlib.nowhere.x", "pointlib.registry.Nothing"]
    assert missing_names(bad) == gone
    assert missing_targets(tmp_path, bad) == ["dmeo", "tset"]
