"""How far a result may lie from its float64 oracle, per dtype: the one table, with its reasons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds on an error `e` against an oracle value `v`: `|e| <= rtol * |v| + atol * max|v|`.

    Attributes:
        rtol: Bound relative to each value.
        atol: Bound relative to the largest magnitude of the whole oracle, so that a sum which nearly cancels is
            judged by the size of its terms and not by the size of what is left.
        reason: Where the two numbers come from.
    """

    rtol: float
    atol: float
    reason: str


TOLERANCES = {
    torch.float64: Tolerance(
        1e-12,
        1e-12,
        "unit roundoff 1.1e-16; the oracle adds the same few thousand terms in another order",
    ),
    torch.float32: Tolerance(
        1e-5,
        2e-6,
        "unit roundoff 6e-8 and random signs: sqrt(27 * 256 terms) * 6e-8 = 5e-6 of the largest term",
    ),
    torch.bfloat16: Tolerance(
        2**-7,
        2**-7,
        "8 bits of significand: one rounding of a float32 sum to the output (2**-9) and, where a library product "
        "writes partial sums of one kernel offset in bf16, a few more of that size",
    ),
    torch.float16: Tolerance(
        2**-10,
        2**-10,
        "11 bits of significand; as for bfloat16 with three more bits",
    ),
}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Assert that a result agrees with its oracle within the tolerance of the result's dtype.

    Args:
        actual: Result of the code under test.
        expected: Oracle, usually float64; same shape.
        dtype: Precision the result was computed in, where it is not the result's own dtype (autocast, TF32).
    """
    bound = TOLERANCES[dtype or actual.dtype]
    oracle = expected.detach().double()
    scale = float(oracle.abs().max()) if oracle.numel() else 0.0
    torch.testing.assert_close(
        actual.detach().double(), oracle, rtol=bound.rtol, atol=bound.atol * scale
    )
