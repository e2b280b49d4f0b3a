"""pointlib.registry: lookup by name, and error texts that tell the way out."""

from __future__ import annotations

from typing import Any

import pytest

from pointlib.registry import Registry


@pytest.fixture
def networks() -> Registry[tuple[Any, ...]]:
    registry: Registry[tuple[Any, ...]] = Registry("network")

    @registry.register()
    def spvcnn(num_classes: int, cr: float = 1.0) -> tuple[Any, ...]:
        return ("spvcnn", num_classes, cr)

    @registry.register("spvcnn_small")
    def small(*, num_classes: int = 19) -> tuple[Any, ...]:
        return ("small", num_classes)

    @registry.register()
    def open_ended(**options: Any) -> tuple[Any, ...]:
        return ("open_ended", options)

    return registry


def test_create_calls_the_constructor(networks: Registry[Any]) -> None:
    assert networks.create("spvcnn", num_classes=3) == ("spvcnn", 3, 1.0)
    assert networks.create("spvcnn_small") == ("small", 19)
    assert networks.create("open_ended", name=1, anything=2) == (
        "open_ended",
        {"name": 1, "anything": 2},
    )


def test_register_returns_the_function_itself(networks: Registry[Any]) -> None:
    def build() -> int:
        return 1

    assert networks.register()(build) is build
    assert networks.get("build") is build


def test_register_accepts_classes() -> None:
    registry: Registry[object] = Registry("thing")

    @registry.register()
    class Thing:
        def __init__(self, size: int) -> None:
            self.size = size

    made = registry.create("Thing", size=4)
    assert isinstance(made, Thing) and made.size == 4
    with pytest.raises(TypeError, match=r"did you mean 'size'\?\nsignature: Thing\(size: 'int'\)"):
        registry.create("Thing", sise=4)


def test_names_are_sorted_and_filtered(networks: Registry[Any]) -> None:
    assert networks.names() == ["open_ended", "spvcnn", "spvcnn_small"]
    assert networks.names("spv*") == ["spvcnn", "spvcnn_small"]
    assert networks.names("SPV*") == []
    assert "spvcnn" in networks and "SPVCNN" not in networks


def test_duplicate_name_is_refused_and_the_first_stays(networks: Registry[Any]) -> None:
    before = networks.get("spvcnn")
    with pytest.raises(
        ValueError, match=r"got the network 'spvcnn', which .*test_registry.*spvcnn"
    ):
        networks.register("spvcnn")(lambda: ())
    assert networks.get("spvcnn") is before


def test_decorator_without_parentheses_is_refused(networks: Registry[Any]) -> None:
    with pytest.raises(TypeError, match="with the parentheses"):

        @networks.register  # type: ignore[arg-type]
        def forgotten() -> None: ...


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("spvcn", "did you mean 'spvcnn' or 'spvcnn_small'"),
        ("zzz", "known: open_ended, spvcnn, spvcnn_small"),
        (7, "known: open_ended"),
    ],
)
def test_unknown_name_suggests_the_nearest(networks: Registry[Any], name: Any, hint: str) -> None:
    with pytest.raises(
        ValueError, match=f"^network: name must be a registered one, got {name!r}; {hint}"
    ):
        networks.create(name)


def test_empty_registry_says_so() -> None:
    with pytest.raises(ValueError, match="there are none"):
        Registry[object]("model").get("x")


def test_wrong_arguments_are_refused_before_the_call() -> None:
    registry: Registry[None] = Registry("model")
    calls: list[int] = []

    @registry.register()
    def build(num_classes: int, cr: float = 1.0) -> None:
        calls.append(num_classes)

    with pytest.raises(
        TypeError, match=r"model 'build': .* got 'num_clases'; did you mean 'num_classes'"
    ):
        registry.create("build", num_clases=3)
    with pytest.raises(
        TypeError, match=r"got none for 'num_classes'\nsignature: build\(num_classes: 'int', cr"
    ):
        registry.create("build", cr=0.5)
    assert calls == []
