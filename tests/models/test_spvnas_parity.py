"""MinkUNet and SPVCNN against mit-han-lab/spvnas (commit f30f0da on torchsparse v1.4.0, CPU), same weights and input.

The golden files hold what the original implementation answered: state-dict names and shapes, parameter and
multiply-accumulate counts, and logits of a regenerated batch of two (64 rows, and two sums over all rows). The scenes
of that batch went through the original one by one, because torchsparse v1.4.0's CPU hash gives every row the batch
index of the first.

Set POINTLIB_REFERENCE_LOGITS to a folder with the original's answers on SemanticKITTI 00/000000 to compare a whole
scan: `<model>.npy` (N, 19) float32 in the row order of `scan_voxels`, and `scan.json` with `coords_crc32`,
`feats_crc32` and `macs`. They derive from licensed data and are not part of this repository. SPVCNN comes twice: as
released (pres = vres = 0.05), and as `<model>_exact.npy` with pres = vres = 1. The original scales its integer
coordinates by pres / vres in float32, and `c * 0.05 / 0.05` moves every seventh of them by up to 2.4e-4 voxel, so
that a little of a neighbour enters the trilinear weights. The scale 1 means the same and moves none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointlib.models import count_macs, create_model
from pointlib.tensor import SparseTensor
from tests.models.deterministic_weights import (
    Cloud,
    checksum,
    fill_state_dict,
    scan_voxels,
    synthetic_cloud,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("minkunet", "spvcnn")
WIDTHS = (0.5, 0.64, 1.0)
CASES = [pytest.param(f, cr, id=f"{f}_cr{cr}") for f in FAMILIES for cr in WIDTHS]

# Bound on |ours - original| <= RTOL * |original| + ATOL * max|original|. Both sides add the same float32 terms, in
# another order, through 50 convolutions: the original's own answers move by 3e-7 of the maximum when the order of its
# rows changes. Twenty times that leaves room for another BLAS.
RTOL = 1e-5
ATOL = 6e-6
# For SPVCNN as released on a whole scan: coordinates moved by 2.4e-4 voxel change logits by 7e-5 of the maximum.
ATOL_MOVED_COORDS = 2e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "spvnas_models.json").read_text())


@pytest.fixture(scope="module")
def golden_logits() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "spvnas_logits.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def cloud(golden: dict[str, Any]) -> Cloud:
    cloud = synthetic_cloud()
    assert checksum(cloud.coords) == golden["coords_crc32"], "the regenerated coordinates changed"
    assert checksum(cloud.feats) == golden["feats_crc32"], "the regenerated features changed"
    return cloud


def golden_name(family: str, cr: float) -> str:
    return f"{family}_cr{str(cr).replace('.', 'p')}"


def filled_model(family: str, cr: float) -> nn.Module:
    model = create_model(family, cr=cr, num_classes=19)
    fill_state_dict(model)
    return model.eval()


def sparse_tensor(cloud: Cloud) -> SparseTensor:
    return SparseTensor(torch.from_numpy(cloud.feats), torch.from_numpy(cloud.coords))


@torch.no_grad()
def logits_and_macs(family: str, cr: float, cloud: Cloud) -> tuple[np.ndarray, int]:
    model = filled_model(family, cr)
    logits: Tensor = model(sparse_tensor(cloud))
    return logits.numpy(), count_macs(model, sparse_tensor(cloud))


def assert_close(got: np.ndarray, want: np.ndarray, atol: float = ATOL) -> None:
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=atol * scale)


@pytest.mark.parametrize(("family", "cr"), CASES)
def test_state_dict_names_shapes_and_size(family: str, cr: float, golden: dict[str, Any]) -> None:
    model = create_model(family, cr=cr, num_classes=19)
    width = golden["widths"].index(cr)
    want = {key: tuple(shapes[width]) for key, shapes in golden["shapes"].items()}
    got = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert got == want
    assert (
        sum(p.numel() for p in model.parameters()) == golden["parameters"][golden_name(family, cr)]
    )
    zeros = {key: torch.zeros(shape) for key, shape in want.items()}
    model.load_state_dict(zeros, strict=True)


@pytest.mark.parametrize(("family", "cr"), CASES)
def test_logits_and_macs_on_a_synthetic_batch(
    family: str,
    cr: float,
    cloud: Cloud,
    golden: dict[str, Any],
    golden_logits: dict[str, np.ndarray],
) -> None:
    name = golden_name(family, cr)
    logits, macs = logits_and_macs(family, cr, cloud)
    assert macs == golden["macs"][name]
    assert logits.shape == (golden["num_voxels"], 19)
    assert_close(logits[golden_logits["rows"]], golden_logits[name])
    exact = logits.astype(np.float64)
    spread = golden_logits[f"{name}_abs_sum"]  # a sum over rows is judged by the size of its terms
    assert (np.abs(exact.sum(0) - golden_logits[f"{name}_sum"]) <= RTOL * spread).all()
    np.testing.assert_allclose(np.abs(exact).sum(0), spread, rtol=RTOL)


@pytest.fixture(scope="module")
def reference_folder() -> Path:
    folder = os.environ.get("POINTLIB_REFERENCE_LOGITS")
    if not folder:
        pytest.skip("POINTLIB_REFERENCE_LOGITS names no folder with the original's logits")
    return Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "cr"), CASES)
def test_logits_and_macs_on_a_real_scan(
    family: str, cr: float, reference_folder: Path, test_data: Path
) -> None:
    scan = test_data / "semantickitti" / "sequences" / "00" / "velodyne" / "000000.bin"
    cloud = scan_voxels(np.fromfile(scan, dtype=np.float32).reshape(-1, 4))
    meta = json.loads((reference_folder / "scan.json").read_text())
    assert checksum(cloud.coords) == meta["coords_crc32"]
    assert checksum(cloud.feats) == meta["feats_crc32"]
    name = golden_name(family, cr)
    logits, macs = logits_and_macs(family, cr, cloud)
    assert macs == meta["macs"][name]
    forms = (
        {name: ATOL} if family == "minkunet" else {name: ATOL_MOVED_COORDS, f"{name}_exact": ATOL}
    )
    for form, atol in forms.items():
        want = np.load(reference_folder / f"{form}.npy", allow_pickle=False)
        worst, scale = np.abs(logits - want).max(), np.abs(want).max()
        changed = (logits.argmax(1) != want.argmax(1)).sum()
        print(
            f"{form}: {len(want)} voxels, {macs / 1e9:.2f} GMAC, max |difference| {worst:.2e}, "
            f"of max |logit| {scale:.2f}: {worst / scale:.1e}, labels that differ: {changed}"
        )
        assert_close(logits, want, atol)
