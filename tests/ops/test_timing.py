"""Medians and limits are of the right size."""

from __future__ import annotations

import time

import torch

from pointlib.ops.timing import Limits, device_limits, median_seconds

CPU = torch.device("cpu")


def test_the_median_is_not_moved_by_an_outlier() -> None:
    naps = iter([0.01, 0.3, *[0.01] * 30])
    assert 0.01 <= median_seconds(lambda: time.sleep(next(naps)), CPU) < 0.2


def test_the_limit_is_the_longer_of_both() -> None:
    limits = Limits(flops=100.0, bytes_per_second=10.0)
    assert limits.seconds(200.0, 10.0) == 2.0
    assert limits.seconds(10.0, 200.0) == 20.0


def test_limits_of_this_machine_are_those_of_a_computer() -> None:
    limits = device_limits(CPU, torch.float32)
    assert 1e8 < limits.flops < 1e15
    assert 1e8 < limits.bytes_per_second < 1e14
