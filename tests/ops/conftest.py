"""While an operator is tested, every call into the compiled engine is held against the C++ declaration."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from torch import Tensor

from pointlib.ops._cpu import engine

KINDS = {
    "int64_t": (int,),
    "float": (float,),
    "*": (Tensor, ctypes.Structure, type(None), int),  # an int is an address
}


@cache
def declared() -> dict[str, list[str]]:
    """Exported function -> `int64_t`, `float` or `*` for each of its parameters, as pointlib/csrc declares it."""
    pattern = re.compile(r"POINTLIB_API\s+[\w ]+?[\s*]+(pl_\w+)\s*\(([^)]*)\)")
    found = {}
    for path in sorted(engine.SOURCES.glob("*.cpp")):
        text = re.sub(r"//[^\n]*", "", path.read_text())
        for name, listed in pattern.findall(text):
            parameters = [p.strip() for p in listed.split(",") if p.strip()]
            found[name] = ["*" if "*" in p else p.split()[0] for p in parameters]
    return found


def check_call(name: str, arguments: tuple[Any, ...]) -> None:
    """Assert that arguments are what an exported function takes; ctypes itself would pass anything."""
    assert name in declared(), f"no {name} in pointlib/csrc"
    parameters = declared()[name]
    assert len(arguments) == len(parameters), f"{name} takes {parameters}, got {arguments}"
    for position, (argument, kind) in enumerate(zip(arguments, parameters, strict=True)):
        assert isinstance(argument, KINDS[kind]), f"{name}: {position} is {kind}, got {argument!r}"


@pytest.fixture(autouse=True)
def checked_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check each call of a test before it is made."""
    call: Callable[..., int] = engine.call

    def checked(name: str, *arguments: Any) -> int:
        check_call(name, arguments)
        return call(name, *arguments)

    monkeypatch.setattr(engine, "call", checked)
