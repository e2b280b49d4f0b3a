"""MinkUNet as a list of fused units, for what pointlib.models does not run: int8, and counting what must be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

from torch import nn

Value = TypeVar("Value")
INPUT = "input"


class Unit(NamedTuple):
    """act(norm(conv(inputs side by side)) + residual), named after its convolution.

    Attributes:
        name: Of the Conv3d in the model, and of the output.
        norm: Of the BatchNorm in the model.
        kind: Over which voxels: the same ones, down from the finer level, up from the coarser one, or each alone.
        level: Of the output; its stride is 2 to that power.
        inputs: Names of one output or two.
        residual: Name of an output, or None.
        relu: Whether a ReLU comes last.
    """

    name: str
    norm: str
    kind: Literal["same", "down", "up", "point"]
    level: int
    inputs: tuple[str, ...]
    residual: str | None = None
    relu: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        """Everything it needs."""
        return self.inputs if self.residual is None else (*self.inputs, self.residual)


def unet_units(model: nn.Module) -> list[Unit]:
    """The units of pointlib's MinkUNet in the order in which they run; the classifier follows the last."""
    names = {name for name, _ in model.named_modules()}
    units: list[Unit] = []

    def add(*args: object) -> str:
        units.append(Unit(*args))  # type: ignore[arg-type]
        return units[-1].name

    def residual_block(name: str, level: int, inputs: tuple[str, ...]) -> str:
        residual = inputs[0]
        if f"{name}.downsample.0" in names:
            point = (f"{name}.downsample.0", f"{name}.downsample.1", "point")
            residual = add(*point, level, inputs, None, False)
        inner = add(f"{name}.net.0", f"{name}.net.1", "same", level, inputs)
        return add(f"{name}.net.3", f"{name}.net.4", "same", level, (inner,), residual)

    x = add("stem.0", "stem.1", "same", 0, (INPUT,))
    skips = [add("stem.3", "stem.4", "same", 0, (x,))]
    for level in range(1, 5):
        block = f"stage{level}.0.net"
        x = add(f"{block}.0", f"{block}.1", "down", level, (skips[-1],))
        for index in (1, 2):
            x = residual_block(f"stage{level}.{index}", level, (x,))
        skips.append(x)
    for number in range(1, 5):
        block, level = f"up{number}.0.net", 4 - number
        x = add(f"{block}.0", f"{block}.1", "up", level, (x,))
        x = residual_block(f"up{number}.1.0", level, (x, skips[level]))
        x = residual_block(f"up{number}.1.1", level, (x,))
    return units


def run_units(
    units: list[Unit],
    start: Value,
    run: Callable[[Unit, list[Value], Value | None], Value],
    watch: Callable[[list[Value]], None] | None = None,
) -> Value:
    """Run units in order, keeping every output until its last reader is done.

    Args:
        units: As of `unet_units`.
        start: The network's input.
        run: Computes a unit from its inputs and its residual.
        watch: Told after each unit what is alive, its own output and what it has just read included.

    Returns:
        The last output.
    """
    values = {INPUT: start}
    last_reader = {name: unit.name for unit in units for name in unit.reads}
    for unit in units:
        residual = None if unit.residual is None else values[unit.residual]
        values[unit.name] = run(unit, [values[name] for name in unit.inputs], residual)
        if watch is not None:
            watch(list(values.values()))
        for name in set(unit.reads):
            if last_reader[name] == unit.name:
                del values[name]
    return values[units[-1].name]
