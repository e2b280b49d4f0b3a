"""Latency statistics of known durations."""

from __future__ import annotations

import pytest

from pointlib.metrics import LatencyMeter


def test_statistics_of_known_durations() -> None:
    meter = LatencyMeter()
    for i in range(101):
        meter.add("forward", i / 1000)
    meter.add("load", 0.5)
    stats = meter.stats()
    assert list(stats) == ["forward", "load"]
    assert stats["forward"].median_ms == pytest.approx(50.0)
    assert stats["forward"].p95_ms == pytest.approx(95.0)
    assert stats["forward"].mean_ms == pytest.approx(50.0)
    assert stats["load"].as_dict()["count"] == 1
    assert "forward" in meter.table()


def test_measure_records_one_call() -> None:
    meter = LatencyMeter()
    with meter.measure("work"):
        sum(range(10))
    assert meter.stats()["work"].count == 1
    assert meter.stats()["work"].median_ms > 0


def test_a_failing_stage_is_not_counted() -> None:
    meter = LatencyMeter()
    with pytest.raises(RuntimeError), meter.measure("work"):
        raise RuntimeError
    assert meter.stats() == {}
    assert "stage" in meter.table()
