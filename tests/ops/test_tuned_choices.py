"""The file of tuned choices: merged between processes, and never in the way."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pointlib.ops import tuned_choices
from pointlib.ops.dataflow import Dataflow, MapStatistics, Workload, tuned_dataflow

WORKLOAD = Workload("forward", torch.float32, 4, 32, MapStatistics(345_532, 27, 91_852))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own."""
    monkeypatch.setenv("POINTLIB_CACHE", str(tmp_path / "cache"))
    tuned_choices.load.cache_clear()
    yield tmp_path / "cache"
    tuned_choices.load.cache_clear()


def entry(rows: int) -> dict[str, object]:
    return dataclasses.asdict(Dataflow(rows))


def test_a_choice_is_found_by_workloads_of_about_the_same_size() -> None:
    assert tuned_dataflow(WORKLOAD, "here") is None
    tuned_choices.add({WORKLOAD.key("here"): entry(128)})
    larger = WORKLOAD._replace(statistics=MapStatistics(346_000, 27, 92_000))
    twice = WORKLOAD._replace(statistics=MapStatistics(691_064, 27, 183_704))
    assert tuned_dataflow(WORKLOAD, "here") == tuned_dataflow(larger, "here") == Dataflow(128)
    others = [WORKLOAD._replace(c_in=5), WORKLOAD._replace(dtype=torch.float16), twice]
    assert all(tuned_dataflow(other, "here") is None for other in others)
    assert tuned_dataflow(WORKLOAD, "elsewhere") is None


def test_choices_are_merged(cache: Path) -> None:
    tuned_choices.add({"a": entry(64), "b": entry(128)})
    file = tuned_choices.add({"b": entry(256), "c": entry(512)})
    assert {key: value["tile_rows"] for key, value in tuned_choices.read(file).items()} == {
        "a": 64,
        "b": 256,
        "c": 512,
    }
    assert sorted(path.name for path in cache.iterdir()) == ["dataflows.json", "dataflows.lock"]


def test_processes_lose_nothing_of_each_other() -> None:
    body = (
        "import sys; from pointlib.ops.tuned_choices import add\n"
        "for i in range(20): add({f'{sys.argv[1]}{i}': "
        "dict(tile_rows=64, tile_channels=0, splits=0, kind='output_stationary', slice_bytes=0)})"
    )
    running = [subprocess.Popen([sys.executable, "-c", body, name]) for name in "xyz"]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(tuned_choices.load()) == 60


def text(**changes: object) -> str:
    """A file with one entry."""
    return json.dumps({"a": {**entry(64), **changes}})


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"a": 1}', '{"a": {"tile_rows": 64}}', "\xff"),
        *(text(tile_rows=-1), text(splits=1.5), text(splits=True), text(kind="wgmma")),
    ],
)
def test_a_broken_file_is_reported_and_passed_over(cache: Path, content: str) -> None:
    cache.mkdir()
    (cache / "dataflows.json").write_bytes(content.encode("latin-1"))
    with pytest.warns(
        UserWarning, match=r"dataflows\.json must hold tuned dataflows.*tools/tune\.py"
    ):
        assert tuned_dataflow(WORKLOAD, "here") is None
    with pytest.warns(UserWarning, match="must hold"):
        tuned_choices.add({"a": entry(64)})
    assert set(json.loads((cache / "dataflows.json").read_text())) == {"a"}


def test_the_file_can_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned_choices.add({WORKLOAD.key("here"): entry(128)})
    monkeypatch.setenv("POINTLIB_TUNED", "0")
    tuned_choices.load.cache_clear()
    assert tuned_dataflow(WORKLOAD, "here") is None


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POINTLIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        tuned_choices.add({"a": entry(64)})
