"""What every test may rely on: where real data is, the same random numbers every time, reasons for skipping."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores, those they start too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same state of the process-wide generators."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  third-party code draws from it


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real sensor data: POINTLIB_TEST_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("POINTLIB_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if named:
            pytest.fail(f"POINTLIB_TEST_DATA must be a folder, got {named}")
        pytest.skip("no real data: set POINTLIB_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def synthetic_nuscenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small synthetic nuScenes, v1.0-mini: 2 samples of a scene of mini_train and of both of mini_val."""
    from pointlib.data.synthetic_nuscenes import generate_nuscenes

    return generate_nuscenes(
        tmp_path_factory.mktemp("nuscenes"),
        scenes=["scene-0061", "scene-0103", "scene-0916"],
        samples_per_scene=2,
        image_size=(176, 99),
        sweeps=1,
        azimuth_steps=360,
        workers=1,
        progress=False,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    missing = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device, torch finds none",
        "ros": None
        if importlib.util.find_spec("rclpy")
        else "needs a sourced ROS 2, rclpy is absent",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
